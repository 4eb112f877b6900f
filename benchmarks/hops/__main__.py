"""`python -m benchmarks.hops PART --kafka HOST:PORT --redis URL`: the numbers of docs/decisions/0001-the-two-hops.md.

Parts: `hops` (produce, fetch; Redis reply), `loop` (both, with and without the outcome log), `facts` (single questions
about the producer), `kills`, `zombies`, `twins` (a worker killed, stopped, stopped and replaced under its own id),
`outages` (broker and Redis killed or hung; needs `--control`). Tables go to stdout as Markdown.
"""

import argparse
import asyncio

from benchmarks.hops import compare, facts, faults, kit, loop, restarts

PARTS = ["hops", "loop", "facts", "kills", "zombies", "twins", "outages"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--kafka", required=True, help="bootstrap servers, host:port")
    parser.add_argument("--redis", required=True, help="redis://host:port")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="run the scenarios whose name contains this")
    parser.add_argument("--control", help="command called with `kafka|redis` and `kill|start|stop|cont`")
    parser.add_argument("--verbose", action="store_true", help="print every run's facts and the clients' logs")
    args = parser.parse_args()
    servers = kit.Servers(args.kafka, args.redis)
    if args.part == "hops":
        compare.second_hop(servers, args.repeats)
        compare.first_hop(servers, args.repeats)
    elif args.part == "outages":
        if not args.control:
            parser.error("outages needs --control")
        chosen = [s for s in restarts.SCENARIOS if (args.only or "") in s.name]
        asyncio.run(restarts.main(servers, args.control, chosen, args.repeats))
    elif args.part in ("loop", "facts"):
        kit.run(loop.main(servers, args.repeats) if args.part == "loop" else facts.main(servers))
    else:
        scenarios = {"kills": faults.KILLS, "zombies": faults.ZOMBIES, "twins": faults.TWINS}[args.part]
        selected = [s for s in scenarios if (args.only or "") in s.name]
        kit.run(faults.main(servers, selected, args.repeats, verbose=args.verbose))


if __name__ == "__main__":
    main()
