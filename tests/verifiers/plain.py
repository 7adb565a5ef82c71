#!/usr/bin/env python3
"""Checks a published log with nothing but Python and `cryptography`.

Written from the specifications alone (RFC 6962 section 2.1, RFC 9162 section 2.1.3.2; C2SP signed-note,
tlog-checkpoint, tlog-cosignature, tlog-tiles, tlog-proof), and shares no code with berth.

    plain.py log FOLDER LOG_VKEY WITNESS_VKEY    the whole log: checkpoint, tiles, bundles, proofs/
    plain.py note FILE LOG_VKEY                  one checkpoint
"""

import base64
import hashlib
import re
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Bad(Exception):
    """What is wrong."""


def check(condition, problem):
    if not condition:
        raise Bad(problem)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def leaf_hash(entry):
    return sha256(b"\x00", entry)


def node_hash(left, right):
    return sha256(b"\x01", left, right)


def decode(text):
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Bad(f"not base64: {text!r}") from error


class Key:
    """A verifier key of kind 0x01 (a log's) or 0x04 (a witness's)."""

    def __init__(self, text):
        self.name, identity, encoded = text.split("+", 2)
        raw = decode(encoded)
        self.kind, public = raw[0], raw[1:]
        self.id = sha256(self.name.encode(), b"\n", raw)[:4]
        check(self.id.hex() == identity, "the key's id is not its own")
        check(self.kind in (1, 4), "a kind of key that is not known")
        self.public = Ed25519PublicKey.from_public_bytes(public)

    def verify(self, text, signature):
        message = text.encode()
        if self.kind == 4:
            check(len(signature) == 72, "a cosignature of another length")
            time = int.from_bytes(signature[:8], "big")
            message = f"cosignature/v1\ntime {time}\n".encode() + message
            signature = signature[8:]
        try:
            self.public.verify(signature, message)
        except InvalidSignature as error:
            raise Bad(f"wrong signature of {self.name}") from error


def open_note(raw, keys):
    """The text of a note that each of these keys has signed."""
    try:
        whole = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Bad("not UTF-8") from error
    check(all(c >= " " or c == "\n" for c in whole), "control characters")
    text, separator, lines = whole.rpartition("\n\n")
    check(separator and lines.endswith("\n"), "not a signed note")
    text += "\n"
    signed = set()
    for line in lines[:-1].split("\n"):
        parts = line.split(" ")
        check(len(parts) == 3 and parts[0] == "\u2014", "not a signature line")
        name, signature = parts[1], decode(parts[2])
        is_name = name and "+" not in name and not re.search(r"\s", name)
        check(is_name and len(signature) > 4, "not a signature line")
        for key in keys:
            if (key.name, key.id) == (name, signature[:4]):
                key.verify(text, signature[4:])
                signed.add(key.name)
    for key in keys:
        check(key.name in signed, f"not signed by {key.name}")
    return text


def open_checkpoint(raw, log, *witnesses):
    """Size and root."""
    text = open_note(raw, [log, *witnesses])
    lines = text[:-1].split("\n")
    check(len(lines) >= 3 and all(lines), "a checkpoint has three lines or more, none empty")
    check(lines[0] == log.name, "the checkpoint of another log")
    check(re.fullmatch(r"0|[1-9][0-9]*", lines[1], re.ASCII), "the size is not a decimal number")
    size, root = int(lines[1]), decode(lines[2])
    check(size < 2**63 and len(root) == 32, "size or root out of bounds")
    return size, root


def path_of(kind, index, width):
    groups = []
    while True:
        groups.insert(0, f"{index % 1000:03}")
        index //= 1000
        if index == 0:
            break
    path = "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])
    return f"tile/{kind}/{path}" + (f".p/{width}" if width < 256 else "")


def parts_of(count):
    """Index and width of what a row of so many is cut into."""
    return [(at // 256, min(256, count - at)) for at in range(0, count, 256)]


def entries_of(bundle, width):
    entries, at = [], 0
    for _ in range(width):
        check(at + 2 <= len(bundle), "a bundle ends too soon")
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        check(end <= len(bundle), "a bundle ends too soon")
        entries.append(bundle[at + 2 : end])
        at = end
    check(at == len(bundle), "a bundle has too much")
    return entries


def merge(hashes):
    """The next level of 256: the roots of full groups."""
    level = hashes[: len(hashes) // 256 * 256]
    for _ in range(8):
        level = [node_hash(*pair) for pair in zip(level[::2], level[1::2])]
    return level


def root_of(leaves):
    stack = []  # (height, hash), heights falling
    for leaf in leaves:
        height = 0
        while stack and stack[-1][0] == height:
            leaf, height = node_hash(stack.pop()[1], leaf), height + 1
        stack.append((height, leaf))
    if not stack:
        return sha256()
    root = stack.pop()[1]
    while stack:
        root = node_hash(stack.pop()[1], root)
    return root


def check_inclusion(leaf, index, size, proof, root):
    check(index < size, "an index beyond the tree")
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        check(last > 0, "a proof that is too long")
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    check(last == 0 and found == root, "a proof that does not lead to the root")


def check_proof_file(text, leaves, log, witness):
    head, separator, note = text.partition("\n\n")
    lines = head.split("\n")
    check(separator and lines.pop(0) == "c2sp.org/tlog-proof@v1", "not a proof file")
    if lines and lines[0].startswith("extra "):
        decode(lines.pop(0)[len("extra ") :])
    check(lines and re.fullmatch(r"index (0|[1-9][0-9]*)", lines[0], re.ASCII), "no index")
    index = int(lines.pop(0)[len("index ") :])
    size, root = open_checkpoint(note.encode(), log, witness)
    check(index < len(leaves), "an index beyond the log")
    check_inclusion(leaves[index], index, size, [decode(line) for line in lines], root)


def check_log(folder, log, witness):
    size, root = open_checkpoint((folder / "checkpoint").read_bytes(), log, witness)
    leaves = []
    for index, width in parts_of(size):
        bundle = (folder / path_of("entries", index, width)).read_bytes()
        leaves += [leaf_hash(entry) for entry in entries_of(bundle, width)]
    hashes, level, tiles = leaves, 0, 0
    while hashes:
        for index, width in parts_of(len(hashes)):
            path = path_of(level, index, width)
            expected = b"".join(hashes[index * 256 : index * 256 + width])
            check((folder / path).read_bytes() == expected, f"{path} is not what the entries make")
            tiles += 1
        hashes, level = merge(hashes), level + 1
    check(root_of(leaves) == root, "the root is not that of the entries")
    proofs = sorted(folder.glob("proofs/*.tlog-proof"))
    for proof in proofs:
        check_proof_file(proof.read_text("utf-8"), leaves, log, witness)
    print(f"accepted: {size} entries, {tiles} tiles, {len(proofs)} proof files")


def main(arguments):
    what, path, *keys = arguments
    keys = [Key(key) for key in keys]
    try:
        if what == "log":
            check_log(Path(path), *keys)
        else:
            size, _ = open_checkpoint(Path(path).read_bytes(), *keys)
            print(f"accepted: checkpoint of {size} entries")
    except (Bad, OSError) as problem:
        sys.exit(f"rejected: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
