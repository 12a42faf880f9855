"""The command line: one typed function a command. Importing it needs neither torch nor diffusers."""

from realcustom.cli.app import main as main
