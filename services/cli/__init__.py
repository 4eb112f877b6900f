"""`aiaas`, the command line: the local stack, one service at a time, and a client of the gateway.

    __main__.py     the commands, put together; errors become one sentence and an exit code
    stack.py        up, down, status                  the local stack (`services.cli.local`)
    doctor.py       doctor                            what to change; checks.py judges
    run.py          gateway, worker, optimizer, monitor, archiver
    models.py       models upload, list, show, promote, rollback, traffic, retire
    inference.py    infer
    requests.py     requests get, follow, cancel      by id
    log.py          topics, dead-letters list
    audit.py        audit verify, explain, export, erase, restore
    demo/           demo

    where.py        which platform a command talks to
    client.py       the gateway's HTTP as a typed client
    events.py       server-sent events, as they arrive
    follow.py       a version's way to ready or rejected, and the table of its variants
    printing.py     people, pipes and machines: one place that prints

Exit codes: 0 all right; 1 what was asked for failed (a rejected model, a failed request, a stack that does not run);
2 it could not be tried (wrong usage, nothing answers). Commands appear here when what they command exists.
"""
