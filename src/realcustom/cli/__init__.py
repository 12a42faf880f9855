"""The command line: one typed function a command."""


def main() -> None:
    """Entry point of `realcustom`."""
    from realcustom.cli.app import run

    run()
