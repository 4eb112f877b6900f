"""Export: a bundle that someone can verify without this platform, its code, or its packages.

    bundle          what goes in, written to a directory or a zip file
    verify_script   the script in the bundle: the Python standard library alone
    README          what the auditor reads first; the encoding, and test vectors

docs/audit.md says what a bundle proves and what it does not.
"""
