"""The sub-commands of ``odin`` that measure; each has ``add_parser(subparsers)`` and ``run(arguments) -> int``."""
