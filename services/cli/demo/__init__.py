"""`aiaas demo`: the platform from upload to proof in about a minute, with two real models; it ends by itself.

    command.py    the command: a fresh local stack, the story, and everything stopped again
    story.py      the eight steps, each of which checks what it shows
    digits.py     a CNN that reads digits, trained here in seconds and cached
    files.py      Magika's model, and real files to identify
    update.py     the digits model learns from feedback, and its new version is promoted
    worse.py      a version that is worse, whose promotion is refused
    proof.py      the back-test before a promotion, and the replay of everything at the end
    upstream.py   a Kafka client that knows only the documented contract

Whatever is not as it should be ends the demo with exit code 1 and a sentence.
"""

from services.cli.demo.command import demo

__all__ = ["demo"]
