"""A service that does nothing, for tests of the supervisor: `python dummy_service.py`, told what to be by variables.

DUMMY_PORT           where `GET /ready` answers
DUMMY_ANSWER         the status it answers with, 200 by default
DUMMY_CHILD_PID      a file: start a process of its own and write its id there
DUMMY_IGNORES_TERM   set: SIGTERM does nothing
"""

import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(os.environ.get("DUMMY_ANSWER", "200")))
        self.end_headers()
        self.wfile.write(b'{"waiting_for": "nothing"}')


def _say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _drain(_signum, _frame):
    _say("drained")
    sys.exit(0)


def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "DUMMY_IGNORES_TERM" in os.environ else _drain)
    if pid_file := os.environ.get("DUMMY_CHILD_PID"):
        Path(pid_file).write_text(str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid))
    _say("listening")
    HTTPServer(("127.0.0.1", int(os.environ["DUMMY_PORT"])), _Ready).serve_forever()


if __name__ == "__main__":
    main()
