"""The command ``coupled-adam``, which is also ``python -m coupled_adam``."""

from __future__ import annotations

from coupled_adam.extras import MissingExtraError


def main() -> None:
    """Run the command line, or say in one line what has to be installed for it."""
    try:
        from coupled_adam import cli
    except MissingExtraError as error:
        raise SystemExit(f"coupled-adam: {error}") from None
    except KeyboardInterrupt:  # in the seconds that torch takes to be imported
        raise SystemExit(130) from None
    cli.main()


if __name__ == "__main__":
    main()
