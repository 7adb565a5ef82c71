// Checks a published log with the reference implementation, golang.org/x/mod/sumdb. Same arguments and
// answers as plain.py. What is here reads files and knows the C2SP names of tiles; trees, proofs and
// signed notes are checked by the packages note and tlog.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

// witness verifies cosignatures of kind 0x04, which the package note does not know.
type witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func newWitness(vkey string) (*witness, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("not a verifier key")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 33 || raw[0] != 4 {
		return nil, errors.New("not the key of a witness")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), raw...))
	return &witness{parts[0], binary.BigEndian.Uint32(sum[:]), raw[1:]}, nil
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.hash }
func (w *witness) Verify(msg, sig []byte) bool {
	if len(sig) != 72 {
		return false
	}
	head := fmt.Sprintf("cosignature/v1\ntime %d\n", binary.BigEndian.Uint64(sig))
	return ed25519.Verify(w.key, append([]byte(head), msg...), sig[8:])
}

// checkpoint opens a note that all of these have signed. The first one is the log's.
func checkpoint(raw []byte, verifiers ...note.Verifier) (tlog.Tree, error) {
	n, err := note.Open(raw, note.VerifierList(verifiers...))
	if err != nil {
		return tlog.Tree{}, err
	}
	if len(n.Sigs) != len(verifiers) {
		return tlog.Tree{}, errors.New("not signed by all that must")
	}
	lines := strings.Split(strings.TrimSuffix(n.Text, "\n"), "\n")
	if len(lines) < 3 || lines[0] != verifiers[0].Name() {
		return tlog.Tree{}, errors.New("not a checkpoint of this log")
	}
	for _, line := range lines {
		if line == "" {
			return tlog.Tree{}, errors.New("an empty line in the checkpoint")
		}
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return tlog.Tree{}, errors.New("not a size: " + lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

// stored keeps every hash of the tree, in the package's own order.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index < 0 || index >= int64(len(s)) {
			return nil, fmt.Errorf("no hash %d", index)
		}
		hashes[i] = s[index]
	}
	return hashes, nil
}

// entries reads one bundle.
func entries(folder string, index int64, width int) ([][]byte, error) {
	tile := tlog.Tile{H: height, L: 0, N: index, W: width}
	name := "tile/entries/" + strings.TrimPrefix(tile.Path(), "tile/8/0/")
	data, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		return nil, err
	}
	var found [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, errors.New(name + " ends too soon")
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		found, data = append(found, data[2:end]), data[end:]
	}
	if len(found) != width {
		return nil, errors.New(name + " has another number of entries")
	}
	return found, nil
}

func checkLog(folder string, verifiers ...note.Verifier) (string, error) {
	raw, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	if err != nil {
		return "", err
	}
	tree, err := checkpoint(raw, verifiers...)
	if err != nil {
		return "", err
	}
	// The package's TileHashReader is not asked: version 0.7.0 leaves the first tiles of a call unchecked
	// when several subtrees of the right edge are in one tile. All hashes are made from the entries.
	var hashes stored
	var leaves [][]byte
	for at := int64(0); at < tree.N; at += 1 << height {
		width := 1 << height
		if tree.N-at < int64(width) {
			width = int(tree.N - at)
		}
		bundle, err := entries(folder, at>>height, width)
		if err != nil {
			return "", err
		}
		for i, entry := range bundle {
			more, err := tlog.StoredHashes(at+int64(i), entry, hashes)
			if err != nil {
				return "", err
			}
			hashes = append(hashes, more...)
		}
		leaves = append(leaves, bundle...)
	}
	root, err := tlog.TreeHash(tree.N, hashes)
	if err != nil {
		return "", err
	}
	if root != tree.Hash {
		return "", errors.New("the root is not that of the entries")
	}
	tiles := 0
	for _, tile := range tlog.NewTiles(height, 0, tree.N) {
		// Older versions of the package list every width that a partial tile has had.
		if there := tree.N>>(height*tile.L) - tile.N<<height; tile.W < 1<<height && int64(tile.W) < there {
			continue
		}
		tiles++
		data, err := tlog.ReadTileData(tile, hashes)
		if err != nil {
			return "", err
		}
		// C2SP names leave out the height.
		name := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		published, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return "", err
		}
		if !bytes.Equal(published, data) {
			return "", errors.New(name + " is not what the entries make")
		}
	}
	proofs, err := filepath.Glob(filepath.Join(folder, "proofs", "*.tlog-proof"))
	if err != nil {
		return "", err
	}
	for _, path := range proofs {
		if err := checkProof(path, leaves, verifiers...); err != nil {
			return "", fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
	}
	return fmt.Sprintf("%d entries, %d tiles, %d proof files", tree.N, tiles, len(proofs)), nil
}

func checkProof(path string, leaves [][]byte, verifiers ...note.Verifier) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, signed, found := strings.Cut(string(raw), "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("not a proof file")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil || index < 0 || index >= int64(len(leaves)) {
		return errors.New("no index of an entry")
	}
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	tree, err := checkpoint([]byte(signed), verifiers...)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(leaves[index]))
}

func run(arguments []string) (string, error) {
	if len(arguments) < 3 {
		return "", errors.New("arguments: log FOLDER LOG_VKEY WITNESS_VKEY, or note FILE LOG_VKEY")
	}
	log, err := note.NewVerifier(arguments[2])
	if err != nil {
		return "", err
	}
	if arguments[0] == "log" && len(arguments) == 4 {
		witness, err := newWitness(arguments[3])
		if err != nil {
			return "", err
		}
		return checkLog(arguments[1], log, witness)
	}
	raw, err := os.ReadFile(arguments[1])
	if err != nil {
		return "", err
	}
	tree, err := checkpoint(raw, log)
	return fmt.Sprintf("checkpoint of %d entries", tree.N), err
}

func main() {
	found, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "rejected:", err)
		os.Exit(1)
	}
	fmt.Println("accepted:", found)
}
