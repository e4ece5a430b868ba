"""In place of an installation from a package index: every requirement has to be in the base image already."""

import importlib.metadata
import sys

with open(sys.argv[1], encoding="utf-8") as stream:
    for line in stream.read().split():
        name, _equals, version = line.partition("==")
        found = importlib.metadata.version(name)
        if found != version:
            sys.exit("%s %s is installed, %s is required" % (name, found, version))
        print("Requirement already satisfied: %s" % line)
