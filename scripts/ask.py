#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a served model a question and prints the answer as it comes. Standard library only."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request

# Tokens of a first paragraph.
PARAGRAPH = 96


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--paragraph", action="store_true", help="ask for the answer's first paragraph only")
    options = parser.parse_args()

    base = "http://localhost:%d/v2/models/ensemble" % options.port
    body = {"text_input": options.question, "max_tokens": options.max_tokens, "bad_words": "", "stop_words": ""}
    sent = {**body, "stream": True, "max_tokens": PARAGRAPH if options.paragraph else options.max_tokens}
    request = urllib.request.Request(base + "/generate_stream", data=json.dumps(sent).encode())
    print("\n%s\n" % options.question)
    said = ""
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if "error" in event:
                        print("ERROR: %s" % event["error"], file=sys.stderr)
                        return 1
                    said += event["text_output"]
                    # Read to the end all the same: Triton never forgets an ensemble's stream that was hung up on.
                    if not (options.paragraph and "\n\n" in said):
                        print(event["text_output"], end="", flush=True)
    except urllib.error.HTTPError as exc:
        print("ERROR: %s answered %d: %s" % (base, exc.code, exc.read(500).decode("utf-8", "replace")), file=sys.stderr)
        return 1
    except OSError as exc:
        print("ERROR: %s does not answer (%s): run `make demo`" % (base, exc), file=sys.stderr)
        return 1
    print("\n\nAsk again:  curl -X POST %s/generate -d '%s'" % (base.replace("http://", ""), json.dumps(body)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
