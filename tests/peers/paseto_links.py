"""Checks every link of the vectors file with pyseto, a PASETO library that shares no code with berth.

Usage: paseto_links.py controller/token/vectors/chains.json
Prints how many links it agreed on; ends with status 1 at the first one on which it does not.
"""

import json
import sys

import pyseto
from pyseto import Key


def payload_of(link):
    """The link's payload, or None if its signature does not hold."""
    key = Key.from_asymmetric_key_params(4, x=bytes.fromhex(link["public_key"]))
    assertion = bytes.fromhex(link["implicit_assertion"])
    try:
        return pyseto.decode(key, link["paseto"], implicit_assertion=assertion).payload
    except (pyseto.VerifyError, pyseto.DecryptError, ValueError):
        return None


def main(path):
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)
    good = bad = 0
    for case in vectors["cases"]:
        for position, link in enumerate(case["links"]):
            expected = link["payload"].encode() if link["is_signed"] else None
            if payload_of(link) != expected:
                sys.exit(f"{case['name']}: pyseto does not agree on link {position}")
            good += link["is_signed"]
            bad += not link["is_signed"]
        refused_for_a_link = case["verdict"].get("refused") == "signature"
        if refused_for_a_link == all(link["is_signed"] for link in case["links"]):
            sys.exit(f"{case['name']}: the verdict is not what its links' signatures say")
    if not good or not bad:
        sys.exit("the file has no good or no bad link")
    print(f"pyseto agrees on {good} good and {bad} bad links")


main(sys.argv[1])
