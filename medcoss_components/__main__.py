"""``python -m medcoss_components`` is ``medcoss``."""

from medcoss_components.cli import main

if __name__ == "__main__":
    main()
