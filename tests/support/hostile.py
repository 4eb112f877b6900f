"""A corpus of hostile uploads, built harmlessly: what any of them would do, if it could, is write a marker file.

`CORPUS` maps a name to what makes the file and the codes that are right for it; None is "it is converted, and nothing
of the payload was run". `LIVE` are programs that run payloads on purpose, without any of our vetting, to show that the
marker would appear.
"""

from __future__ import annotations

import io
import json
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib

import torch
from onnx import TensorProto, helper

from support import bundles, uploads
from support.bundles import archive, bundle, changed, members, safetensors

MARKER = "MARKER-of-a-payload"
TOUCH = f"open({MARKER!r}, 'w').close()"


class Payload:
    """Runs the payload when it is unpickled."""

    def __reduce__(self):
        return exec, (TOUCH,)


def pickled(protocol):
    return pickle.dumps(Payload(), protocol)


# ------------------------------------------------------------------ archives


def zip_with(name, content=b"x", **fields):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        info = zipfile.ZipInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        made.writestr(info, content)
        made.writestr("model.onnx", b"x")
    return buffer.getvalue()


def patched(content, old, new):
    assert old in content
    return content.replace(old, new)


def bomb_zip():
    """A quarter of a gigabyte of zeros in a quarter of a megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made, made.open("model.onnx", "w") as member:
        for _ in range(256):
            member.write(bytes(1024 * 1024))
    return buffer.getvalue()


def overlapping():
    """One member's bytes under a hundred names (https://www.bamsoftware.com/hacks/zipbomb/)."""
    raw = bytearray(archive({f"f{number:03}": "x" * 1000 for number in range(100)}))
    at = zipfile.ZipFile(io.BytesIO(raw)).infolist()[0].header_offset
    begin = 0
    while (begin := raw.find(b"PK\x01\x02", begin)) >= 0:
        raw[begin + 42 : begin + 46] = struct.pack("<I", at)
        raw[begin + 20 : begin + 28] = struct.pack("<II", 10**6, 10**6)
        begin += 4
    return bytes(raw)


def encrypted():
    content = bytearray(archive({"model.onnx": b"x" * 50}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(magic)
        content[at + offset] |= 1
    return bytes(content)


def lying_size():
    content = bytearray(archive({"model.onnx": uploads.mlp().SerializeToString()}))
    at = content.find(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(content)


def tar_with(name="model.onnx", content=b"x", **fields):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fields.pop("format", tarfile.GNU_FORMAT)) as made:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pax_chain():
    """Headers about headers about headers: a reader that recurses falls over."""
    header = tarfile.TarInfo("h").create_pax_global_header({"comment": "x"})
    return header * 5000 + tar_with()


# ------------------------------------------------------------------ ONNX


def relu(**changes):
    made = uploads.elementwise()
    for field, value in changes.items():
        getattr(made.graph, field).append(value)
    return made


def outside_in_bundle(location, **keys):
    made = uploads.with_outside_initializer()
    tensor = made.graph.initializer[0]
    tensor.external_data[0].value = location
    for key, value in keys.items():
        tensor.external_data.add(key=key, value=value)
    return archive({"model.onnx": made.SerializeToString(), "data.bin": bytes(16), "sub/x": b"x"})


def deep_ifs(depth=20):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "leaf", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    for _ in range(depth):
        node = helper.make_node("If", ["on"], ["b"], then_branch=graph, else_branch=graph) if _ == 0 else None
        node = node or helper.make_node("If", ["on"], ["b"], then_branch=graph)
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("b", 1, None)])
    chosen = helper.make_node("Identity", ["b"], ["y"])
    graph.node.append(chosen)
    return uploads.model(graph.node, {"x": (1, ("n",)), "on": (9, ())}, {"y": (1, ("n",))})


def nested_messages(depth=5000):
    """Protobuf within protobuf: NodeProto.attribute.g.node.attribute.g …"""
    content = b""
    for number in range(depth):
        tag = (0x0A, 0x2A, 0x32)[number % 3]
        content = bytes([tag]) + _varint(len(content)) + content
    return b"\x08\x09" + b"\x3a" + _varint(len(content)) + content


def _varint(number):
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def recursive_function():
    made = uploads.model(
        [helper.make_node("F", ["x"], ["y"], domain="local")],
        {"x": (1, ("n",))},
        {"y": (1, ("n",))},
        domains=["local"],
    )
    body = [helper.make_node("F", ["a"], ["b"], domain="local")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    made.functions.append(helper.make_function("local", "F", ["a"], ["b"], body, opsets))
    return made


def lying_tensor(dims, raw=bytes(4)):
    tensor = TensorProto(name="w", data_type=1, dims=dims, raw_data=raw)
    made = uploads.model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (1, ("n", 4))}, {"y": (1, ("n", 4))})
    made.graph.initializer.append(tensor)
    return made


def cycle():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return uploads.model(nodes, {"x": (1, ("n",))}, {"b": (1, ("n",))})


def python_operator():
    node = helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib", module="os", method="system")
    return uploads.model([node], {"x": (1, ("n",))}, {"y": (1, ("n",))}, domains=["ai.onnx.contrib"])


def training_script():
    """A file of code where ONNX Runtime's extension finds operators."""
    node = helper.make_node("Script", ["x"], ["y"], domain="com.acme", script=TOUCH)
    return uploads.model([node], {"x": (1, ("n",))}, {"y": (1, ("n",))}, domains=["com.acme"])


# ------------------------------------------------------------------ safetensors


def tensors(header, body=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_weights(content, config=None):
    return bundle(config__json=bundles.CONFIG if config is None else config, model__safetensors=content)


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def config(**changes):
    return with_weights(safetensors(bundles.weights()), bundles.CONFIG | changes)


# ------------------------------------------------------------------ torch.export


def program(change, make=bundles.as_pt2):
    """The network's program with something else in its JSON."""
    name = next(name for name in members(make()) if name.endswith("models/model.json"))
    document = json.loads(members(make())[name])
    change(document)
    return changed(make(), **{"models/model__json": json.dumps(document).encode()})


def payload_config(change):
    name = "data/weights/model_weights_config.json"
    held = members(bundles.as_pt2())
    full = next(each for each in held if each.endswith(name))
    document = json.loads(held[full])
    change(document["config"]["net.0.weight"])
    return changed(bundles.as_pt2(), **{name.replace(".", "__"): json.dumps(document).encode()})


def torch_pickled():
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    return buffer.getvalue()


def pickled_weight():
    made = payload_config(lambda entry: entry.update(use_pickle=True))
    held = members(made)
    name = next(each for each in held if each.endswith("data/weights/weight_0"))
    return archive(held | {name: torch_pickled()})


def first_dim(document):
    return document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]


EVIL = f"__import__('builtins').exec({TOUCH!r})"


def target(text):
    return program(lambda document: document["graph_module"]["graph"]["nodes"][0].update(target=text))


def with_member(content, name, member):
    held = members(content)
    root = next(iter(held)).partition("/")[0]
    return archive(held | {f"{root}/{name}": member})


def custom_object():
    def change(document):
        document["config"]["o"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    held = members(bundles.as_pt2())
    name = next(each for each in held if each.endswith("model_constants_config.json"))
    document = json.loads(held[name])
    change(document)
    held[name] = json.dumps(document).encode()
    held[name.replace("model_constants_config.json", "opaque_obj_0")] = pickled(2)
    return archive(held)


# ------------------------------------------------------------------ TorchScript


class Saves(torch.nn.Module):
    def forward(self, x):
        torch.save(x, "MARKER-of-a-payload")
        return x


class Reads(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_file("/etc/passwd", False, 8, dtype=torch.uint8).float()


class Wakes(torch.nn.Module):
    """TorchScript's own hook, which is run while the file is loaded."""

    def __init__(self):
        super().__init__()
        self.w = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w = state[0]
        self.training = state[1]

    def forward(self, x):
        return x + self.w


class Raises(torch.nn.Module):
    def forward(self, x):
        if x.sum() > -1e30:
            raise ValueError("no")
        return x


def script(module, takes=bundles.TAKES):
    return bundles.scripted(module, takes)


def takes(**changes):
    return script(bundles.network(), bundles.TAKES | changes)


def with_code(code):
    held = members(bundles.as_torchscript())
    name = (
        next(each for each in held if each.endswith("code/__torch__.py"))
        if any(each.endswith("code/__torch__.py") for each in held)
        else next(each for each in held if each.endswith(".py"))
    )
    return archive(held | {name: held[name] + code})


# ------------------------------------------------------------------ TensorFlow's


def keras(layer, **more):
    document = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}
    return bundle(config__json=document, metadata__json={}, model__weights__h5=b"\x89HDF\r\n\x1a\n", **more)


def lambda_layer():
    return {"module": "keras.layers", "class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}}


def slow_tokenizer():
    """A regular expression that takes exponential time."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(a|aa|aaa)+$"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }


def _deep():
    return changed(bundles.as_pt2(), **{"models/model__json": b'{"a":' * 100_000})


ARCHIVE, MODEL, UNSAFE, BUNDLE = "unsafe_archive", "invalid_model", "unsafe_model", "invalid_bundle"
OTHER, OUTSIDE = "unsupported_format", "external_data"

CORPUS = {
    # pickles, under every name they go by
    **{f"pickle, protocol {p}": (lambda p=p: pickled(p), OTHER) for p in range(6)},
    "joblib, compressed": (lambda: zlib.compress(pickled(4)), OTHER),
    "whole model, torch.save": (torch_pickled, OTHER),
    "legacy torch.save": (lambda: pickled(2) * 3, OTHER),
    "pickle in a zip": (lambda: archive({"model.pkl": pickled(4)}), OTHER),
    "npz of objects": (lambda: archive({"a.npy": b"\x93NUMPY" + pickled(4)}), OTHER),
    "gzipped": (lambda: b"\x1f\x8b\x08" + bytes(40), OTHER),
    "a program": (lambda: b"\x7fELF" + bytes(100), OTHER),
    "a shell script": (f"#!/bin/sh\ntouch {MARKER}\n".encode, MODEL),
    # archives
    "zip: ..": (lambda: zip_with("../../x"), ARCHIVE),
    "zip: absolute": (lambda: zip_with("/etc/cron.d/x"), ARCHIVE),
    "zip: backslash": (lambda: patched(zip_with("..!x"), b"..!x", b"..\\x"), ARCHIVE),
    "zip: drive": (lambda: zip_with("C:/x"), ARCHIVE),
    "zip: control character": (lambda: zip_with("a\nb"), ARCHIVE),
    "zip: symlink": (lambda: zip_with("link", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16), ARCHIVE),
    "zip: device": (lambda: zip_with("dev", b"", external_attr=(stat.S_IFCHR | 0o666) << 16), ARCHIVE),
    "zip: twice the same": (lambda: patched(archive({"aa": b"1", "ab": b"2"}), b"ab", b"aa"), ARCHIVE),
    "zip: encrypted": (encrypted, ARCHIVE),
    "zip: odd compression": (lambda: archive({"model.onnx": b"x"}, zipfile.ZIP_LZMA), ARCHIVE),
    "zip: bomb": (bomb_zip, ARCHIVE),
    "zip: overlapping": (overlapping, ARCHIVE),
    "zip: 10001 members": (lambda: archive({f"f{n}": b"" for n in range(10_001)}), ARCHIVE),
    "zip: deep": (lambda: archive({"a/" * 50 + "x": b""}), ARCHIVE),
    "zip: lies about a size": (lying_size, ARCHIVE),
    "zip: truncated": (lambda: bundles.as_onnx_bundle()[:-30], ARCHIVE),
    "zip: nothing": (lambda: archive({}) + b"PK\x03\x04", MODEL),
    "zip: in a zip": (lambda: archive({"a.zip": archive({"model.onnx": b"x"})}), OTHER),
    "tar: ..": (lambda: tar_with("../x"), ARCHIVE),
    "tar: absolute": (lambda: tar_with("/etc/x"), ARCHIVE),
    "tar: symlink": (lambda: tar_with(type=tarfile.SYMTYPE, linkname="/etc/passwd"), ARCHIVE),
    "tar: hard link": (lambda: tar_with(type=tarfile.LNKTYPE, linkname="/etc/passwd"), ARCHIVE),
    "tar: device": (lambda: tar_with(content=b"", type=tarfile.CHRTYPE), ARCHIVE),
    "tar: fifo": (lambda: tar_with(content=b"", type=tarfile.FIFOTYPE), ARCHIVE),
    "tar: truncated": (lambda: tar_with(content=bytes(5000))[:2000], ARCHIVE),
    "tar: headers about headers": (pax_chain, ARCHIVE),
    # ONNX
    "onnx: data in /etc/passwd": (lambda: relu(initializer=uploads.outside("/etc/passwd")), OUTSIDE),
    "onnx: data in ..": (uploads.with_outside_initializer, OUTSIDE),
    "onnx: data outside, in a constant": (
        lambda: uploads.inside_if(helper.make_node("Constant", [], ["b"], value=uploads.outside())),
        OUTSIDE,
    ),
    "onnx bundle: data in /etc/passwd": (lambda: outside_in_bundle("/etc/passwd"), OUTSIDE),
    "onnx bundle: data in ..": (lambda: outside_in_bundle("../data.bin"), OUTSIDE),
    "onnx bundle: data in /proc/self/environ": (lambda: outside_in_bundle("/proc/self/environ"), OUTSIDE),
    "onnx bundle: through a directory": (lambda: outside_in_bundle("sub/../data.bin"), OUTSIDE),
    "onnx bundle: offset beyond": (lambda: outside_in_bundle("data.bin", offset="9"), OUTSIDE),
    "onnx bundle: negative offset": (lambda: outside_in_bundle("data.bin", offset="-1"), OUTSIDE),
    "onnx bundle: offset of 10^30": (lambda: outside_in_bundle("data.bin", offset="9" * 30), OUTSIDE),
    "onnx bundle: length that lies": (lambda: outside_in_bundle("data.bin", length="8"), OUTSIDE),
    "onnx bundle: a base path": (lambda: outside_in_bundle("data.bin", prefix="/"), OUTSIDE),
    "onnx bundle: two models": (lambda: archive({"a.onnx": b"x", "b.onnx": b"y"}), BUNDLE),
    "onnx bundle: garbage": (lambda: archive({"a.onnx": b"\xff" * 99}), MODEL),
    "onnx: custom operator": (uploads.custom_operator, "operator_domain"),
    "onnx: a script as an attribute": (training_script, "operator_domain"),
    "onnx: PyOp": (python_operator, "operator_domain"),
    "onnx: EPContext": (
        lambda: uploads.model(
            [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")],
            {"x": (1, (1,))},
            {"y": (1, (1,))},
            domains=["com.microsoft"],
        ),
        "operator_domain",
    ),
    "onnx: function that calls itself": (recursive_function, (MODEL, "load_failed", "vet_crashed")),
    "onnx: Ifs in Ifs": (deep_ifs, (MODEL, "load_failed", OTHER, "execution_failed")),
    "onnx: messages in messages": (nested_messages, (MODEL, OTHER)),
    "onnx: dims of 2^62": (lambda: lying_tensor([1 << 31, 1 << 31]), (MODEL, "load_failed")),
    "onnx: negative dims": (lambda: lying_tensor([-4]), (MODEL, "load_failed")),
    "onnx: fewer bytes than dims": (lambda: lying_tensor([4]), (MODEL, "load_failed")),
    "onnx: a cycle": (cycle, MODEL),
    "onnx: terabytes asked for": (uploads.bomb, "out_of_memory"),
    "onnx: opset of tomorrow": (lambda: uploads.elementwise().__class__.FromString(_opset(99)), "unsupported_opset"),
    "onnx: a name of control characters": (lambda: _named("a\x1bb"), "unsupported_input"),
    # safetensors and their config
    "safetensors: alone": (uploads.safetensors, OTHER),
    "safetensors: header of 2^63 bytes": (lambda: with_weights(b"\xff" * 7 + b"\x7f" + b"{}" * 50), MODEL),
    "safetensors: header beyond the end": (lambda: with_weights((1000).to_bytes(8, "little") + b"{}"), MODEL),
    "safetensors: header is no JSON": (lambda: with_weights(tensors(b"{nonsense")), MODEL),
    "safetensors: header is deep": (lambda: with_weights(tensors(b"[" * 100_000)), MODEL),
    "safetensors: shape that overflows": (
        lambda: with_weights(tensors({"w": entry([2**40] * 8, (0, 8))})),
        MODEL,
    ),
    "safetensors: negative shape": (lambda: with_weights(tensors({"w": entry([-2])})), MODEL),
    "safetensors: overlap": (
        lambda: with_weights(tensors({"a": entry(), "b": entry(offsets=(0, 8))})),
        MODEL,
    ),
    "safetensors: hole": (lambda: with_weights(tensors({"a": entry(offsets=(8, 16))}, bytes(16))), MODEL),
    "safetensors: beyond the end": (lambda: with_weights(tensors({"a": entry([99], (0, 396))})), MODEL),
    "safetensors: bytes left over": (lambda: with_weights(tensors({"a": entry()}, bytes(99))), MODEL),
    "safetensors: unknown type": (lambda: with_weights(tensors({"a": entry(dtype="PICKLE")})), MODEL),
    "safetensors: a pickle by that name": (lambda: with_weights(pickled(4)), MODEL),
    "config: no JSON": (lambda: with_weights(safetensors(bundles.weights()), b"\x80\x04."), BUNDLE),
    "config: deep": (lambda: with_weights(safetensors(bundles.weights()), b"[" * 100_000), BUNDLE),
    "config: two megabytes": (lambda: with_weights(safetensors(bundles.weights()), b" " * 2_000_000), BUNDLE),
    "config: architecture by import path": (lambda: config(architecture="os.system"), BUNDLE),
    "config: auto_map": (lambda: config(auto_map={"AutoModel": "evil.Model"}), BUNDLE),
    "config: terabytes of neurons": (lambda: config(sizes=[1 << 20, 1 << 20, 1 << 20]), BUNDLE),
    "config: 10^30 neurons": (lambda: config(sizes=[8, 10**30, 4]), BUNDLE),
    "config: other sizes": (lambda: config(sizes=[8, 17, 4]), BUNDLE),
    "config: names that are not there": (lambda: config(rename={"0.": "9."}), BUNDLE),
    "tokenizer: exponential": (
        lambda: bundle(
            config__json=bundles.CONFIG,
            model__safetensors=safetensors(bundles.weights()),
            tokenizer__json=slow_tokenizer(),
        ),
        ("tokenizer_unusable", None),
    ),
    "tokenizer: none": (
        lambda: bundle(
            config__json=bundles.CONFIG, model__safetensors=safetensors(bundles.weights()), tokenizer__json=b"\xff"
        ),
        "tokenizer_unusable",
    ),
    "tokenizer: a pickle": (
        lambda: bundle(
            config__json=bundles.CONFIG, model__safetensors=safetensors(bundles.weights()), tokenizer__json=pickled(0)
        ),
        "tokenizer_unusable",
    ),
    # torch.export
    "pt2: pickled weights": (pickled_weight, UNSAFE),
    "pt2: opaque object": (custom_object, UNSAFE),
    "pt2: pickled sample inputs": (
        lambda: changed(bundles.as_pt2(), **{"data/sample_inputs/model__pt": torch_pickled()}),
        None,
    ),
    "pt2: expression that imports": (lambda: program(lambda d: first_dim(d).update(expr_str=EVIL)), UNSAFE),
    "pt2: expression of attributes": (
        lambda: program(lambda d: first_dim(d).update(expr_str="().__class__.__base__.__subclasses__()")),
        UNSAFE,
    ),
    "pt2: expression of 9**9**9": (lambda: program(lambda d: first_dim(d).update(expr_str="9**9**9**9")), UNSAFE),
    "pt2: expression of a million brackets": (
        lambda: program(lambda d: first_dim(d).update(expr_str="(" * 1000 + ")" * 1000)),
        UNSAFE,
    ),
    "pt2: guard that runs code": (lambda: program(lambda d: d.update(guards_code=[EVIL])), None),
    "pt2 for torch: guard that runs code": (
        lambda: program(lambda d: d.update(guards_code=[EVIL]), bundles.NOT_ONNX["pt2"]),
        None,
    ),
    "pt2 for torch: pickled sample inputs": (
        lambda: changed(bundles.NOT_ONNX["pt2"](), **{"data/sample_inputs/model__pt": torch_pickled()}),
        None,
    ),
    "torchscript for torch: a pickle among its extra files": (
        lambda: with_member(bundles.NOT_ONNX["torchscript"](), "extra/evil.pkl", pickled(2)),
        None,
    ),
    "pt2: range of something else": (
        lambda: program(lambda d: d["range_constraints"].update({EVIL: {"min_val": 0, "max_val": 1}})),
        UNSAFE,
    ),
    "pt2: calls os.system": (lambda: target("os.system"), UNSAFE),
    "pt2: calls builtins.exec": (lambda: target("builtins.exec"), UNSAFE),
    "pt2: calls torch.load": (lambda: target("torch.load"), UNSAFE),
    "pt2: calls torch.ops.load_library": (lambda: target("torch.ops.load_library"), UNSAFE),
    "pt2: calls a library's operator": (lambda: target("torch.ops.evil.run.default"), UNSAFE),
    "pt2: reads a file": (lambda: target("torch.ops.aten.from_file.default"), UNSAFE),
    "pt2: structure of a foreign class": (
        lambda: program(
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=json.dumps([1, {"type": "os.system", "context": "null", "children_spec": []}])
            )
        ),
        "not_convertible",
    ),
    "pt2: foreign verifier": (lambda: program(lambda d: d.update(verifiers=["os"])), UNSAFE),
    "pt2: compiled code": (lambda: with_member(bundles.as_pt2(), "data/aotinductor/m/x.so", b"\x7fELF"), UNSAFE),
    "pt2: two programs": (lambda: with_member(bundles.as_pt2(), "models/other.json", b"{}"), MODEL),
    "pt2: JSON that is deep": (_deep, MODEL),
    "pt2: no program": (lambda: archive({"m/archive_format": b"pt2", "m/models/m.json": b"{}"}), MODEL),
    "pt2: weights that are not there": (
        lambda: payload_config(lambda entry: entry.update(path_name="weight_77")),
        BUNDLE,
    ),
    "pt2: weights by a path": (
        lambda: payload_config(lambda entry: entry.update(path_name="../../../etc/passwd")),
        UNSAFE,
    ),
    "pt2: strides beyond the weights": (
        lambda: payload_config(lambda entry: entry["tensor_meta"].update(strides=[{"as_int": 10**9}] * 2)),
        "not_convertible",
    ),
    # TorchScript
    "torchscript: writes a file": (lambda: script(Saves()), UNSAFE),
    "torchscript: reads a file": (lambda: script(Reads()), UNSAFE),
    "torchscript: wakes up while loaded": (lambda: script(Wakes()), UNSAFE),
    "torchscript: calls a library's operator": (lambda: with_code(b"\n  _0 = ops.evil.run(x)\n"), UNSAFE),
    "torchscript: a custom class": (lambda: with_code(b"\n  a : __torch__.torch.classes.evil.C\n"), UNSAFE),
    "torchscript: a pickle for its data": (
        lambda: changed(bundles.as_torchscript(), **{"/data__pkl": pickled(2)}),
        UNSAFE,
    ),
    "torchscript: a pickle of another protocol": (
        lambda: changed(bundles.as_torchscript(), **{"/data__pkl": pickled(4)}),
        UNSAFE,
    ),
    "torchscript: a pickle for its constants": (
        lambda: changed(bundles.as_torchscript(), constants__pkl=pickled(2)),
        UNSAFE,
    ),
    "torchscript: a library within": (lambda: with_member(bundles.as_torchscript(), "x.so", b"\x7fELF"), UNSAFE),
    "torchscript: garbage for code": (lambda: with_code(b"\n\x00)(("), "not_convertible"),
    "torchscript: says not what it takes": (lambda: script(bundles.network(), None), BUNDLE),
    "torchscript: takes a part by path": (lambda: takes(module="__class__.__init__"), (BUNDLE,)),
    "torchscript: takes terabytes": (
        lambda: takes(inputs=[{"name": "x", "datatype": "FP32", "shape": [1 << 28, 1 << 28]}]),
        BUNDLE,
    ),
    "torchscript: raises": (lambda: script(Raises()), "not_convertible"),
    # TensorFlow's, where they are looked at before TensorFlow is
    "keras: a Lambda layer": (lambda: keras(lambda_layer()), UNSAFE),
    "keras: a SavedModel within": (lambda: keras({"module": "keras.layers", "class_name": "TFSMLayer"}), UNSAFE),
    "keras: a foreign class": (lambda: keras({"module": "os", "class_name": "system"}), "not_convertible"),
    "keras: a vocabulary from a file": (
        lambda: keras({"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc"}}),
        UNSAFE,
    ),
    "keras: more files": (lambda: keras({}, assets__x=b"x"), UNSAFE),
    "keras: deep": (
        lambda: bundle(config__json=b'{"a":' * 100_000, metadata__json={}, model__weights__h5=b"x"),
        MODEL,
    ),
}


def _opset(version):
    made = uploads.elementwise()
    made.opset_import[0].version = version
    return made.SerializeToString()


def _named(name):
    made = uploads.elementwise()
    made.graph.input[0].name = name
    made.graph.node[0].input[0] = name
    return made


def content(name):
    """The bytes of a hostile file."""
    made = CORPUS[name][0]()
    return made if isinstance(made, bytes) else made.SerializeToString()


LIVE = {
    "a pickle": (lambda: pickled(4), "import pickle; pickle.load(open('file', 'rb'))"),
    "torch.load": (torch_pickled, "import torch; torch.load('file', weights_only=False)"),
    "a .pt2's expression": (EVIL.encode, "import sympy; sympy.sympify(open('file').read())"),
    "a .pt2's sample inputs": (
        lambda: content("pt2: pickled sample inputs"),
        "import torch; torch.export.load(open('file', 'rb'))",
    ),
    "TorchScript": (
        lambda: content("torchscript: writes a file"),
        "import torch; torch.jit.load('file')(torch.zeros(1))",
    ),
}
"""What makes a payload, and what runs it on purpose."""
