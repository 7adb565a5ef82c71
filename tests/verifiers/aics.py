#!/usr/bin/env python3
"""Checks a published log with `aics-tlog` from PyPI. Same arguments and answers as `plain.py`."""

import base64
import sys
from pathlib import Path

import aics_tlog


def open_checkpoint(raw, log, *witnesses):
    note = aics_tlog.parse_note(raw)
    result = aics_tlog.verify_checkpoint(note, log, list(witnesses), quorum=len(witnesses))
    if not result.ok:
        sys.exit(f"rejected: {result.error or 'checkpoint'}")
    checkpoint = aics_tlog.parse_checkpoint(note.text)
    if checkpoint.origin != log.name:
        sys.exit("rejected: the checkpoint of another log")
    return checkpoint


def check_proof_file(text, reader, log, witness):
    head, _, note = text.partition("\n\n")
    lines = head.split("\n")
    index = int(lines[1].removeprefix("index "))
    proof = [base64.b64decode(line, validate=True) for line in lines[2:]]
    tree = open_checkpoint(note.encode(), log, witness)
    width = min(256, tree.size - index // 256 * 256)
    bundle = reader.read_entry_bundle(index // 256, None if width == 256 else width)
    entry = aics_tlog.tiles.parse_entry_bundle(bundle)[index % 256]
    if not aics_tlog.verify_leaf_inclusion(entry, index, tree.size, proof, tree.root):
        sys.exit(f"rejected: the proof of entry {index}")


def check_log(folder, log, witness):
    tree = open_checkpoint((folder / "checkpoint").read_bytes(), log, witness)
    reader = aics_tlog.FileSystemTileReader(folder)
    report = aics_tlog.audit_tiles(reader, tree.size, tree.root)
    proofs = sorted(folder.glob("proofs/*.tlog-proof"))
    for proof in proofs:
        check_proof_file(proof.read_text("utf-8"), reader, log, witness)
    print(f"accepted: {report.size} entries, {report.tiles} tiles, {len(proofs)} proof files")


def main(arguments):
    what, path, *keys = arguments
    keys = [aics_tlog.parse_vkey(key) for key in keys]
    # Its readers say what is wrong with errors of many kinds; each of them is a refusal.
    try:
        if what == "log":
            check_log(Path(path), *keys)
        else:
            checkpoint = open_checkpoint(Path(path).read_bytes(), *keys)
            print(f"accepted: checkpoint of {checkpoint.size} entries")
    except Exception as problem:
        sys.exit(f"rejected: {type(problem).__name__}: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
