"""The sub-commands of ``odin``, one per file: each has ``add_parser(subparsers)`` and ``run(arguments) -> int``."""
