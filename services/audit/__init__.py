"""Audit: what was asked and answered, kept beyond Kafka's retention, and proved.

One process, the archiver (`aiaas archiver`, wired in `app`), and commands (`aiaas audit …`). All of them read what was
recorded through one interface, whether it is still in Kafka or already in the archive:

    records     an accepted outcome with its request and its result, and why one of these may be gone
    source      the interface: outcomes by model and time, offset or id
    kafka_source, archive_source    its two implementations

Who may import it: nobody. The command line loads its commands by name, as it does services.
"""
