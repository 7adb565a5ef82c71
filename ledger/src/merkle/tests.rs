//! Tests of `merkle`: what its own file promises, on its public calls.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// Everything that a log of some leaves stores.
struct Stored {
    frontier: Frontier,
    nodes: BTreeMap<Node, Hash>,
    roots: Vec<Hash>,
}

fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

fn stored(size: u64) -> Stored {
    let mut stored = Stored {
        frontier: Frontier::new(),
        nodes: BTreeMap::new(),
        roots: vec![Hash::of_empty_tree()],
    };
    for index in 0..size {
        let nodes = &mut stored.nodes;
        let mut next = stored_count(index);
        let Ok(()) = stored
            .frontier
            .append(leaf_hash(&entry(index)), |node, hash| {
                assert_eq!(node.stored_index(), Some(next), "nodes come in their order");
                assert_eq!(Node::from_stored_index(next), Some(node));
                next += 1;
                assert_eq!(nodes.insert(node, hash), None, "a node comes once");
                Ok::<_, Infallible>(())
            });
        assert_eq!(next, stored_count(index + 1));
        stored.roots.push(stored.frontier.root());
    }
    stored
}

impl Stored {
    /// Reads as a log of this size would: nothing that it does not have yet.
    fn reader(&self, size: u64) -> impl FnMut(Node) -> Result<Hash, ReadHashError> {
        move |node| {
            assert!(node.is_in(size), "{node:?} is not stored at {size}");
            Ok(self.nodes[&node])
        }
    }

    fn root(&self, size: u64) -> Hash {
        self.roots[usize::try_from(size).unwrap()]
    }
}

/// RFC 6962 section 2.1, word by word.
fn root_by_definition(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::of_empty_tree(),
        [leaf] => *leaf,
        leaves => {
            let mut split = 1;
            while split * 2 < leaves.len() {
                split *= 2;
            }
            let (left, right) = leaves.split_at(split);
            node_hash(&root_by_definition(left), &root_by_definition(right))
        }
    }
}

#[test]
fn the_hashes_of_the_specification_hold() {
    assert_eq!(
        Hash::of_empty_tree().to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(
        leaf_hash(b"").to_string(),
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    );
    let hash = leaf_hash(b"x");
    assert_eq!(Hash::from_base64(&hash.to_base64()), Ok(hash));
    assert_eq!(Hash::from_hex(&hash.to_string()), Ok(hash));
    Hash::from_hex(&hash.to_string().to_uppercase()).unwrap_err();
    Hash::from_hex("00").unwrap_err();
    Hash::from_base64("AA==").unwrap_err();
}

#[test]
fn every_root_is_that_of_the_definition() {
    let size = 300;
    let stored = stored(size);
    let leaves: Vec<Hash> = (0..size).map(|index| leaf_hash(&entry(index))).collect();
    for size in 0..=size {
        let some = &leaves[..usize::try_from(size).unwrap()];
        assert_eq!(root_by_definition(some), stored.root(size));
        assert_eq!(
            root_from_nodes(size, stored.reader(size)),
            Ok(stored.root(size))
        );
        let loaded = Frontier::load(size, stored.reader(size)).unwrap();
        assert_eq!((loaded.size(), loaded.root()), (size, stored.root(size)));
    }
}

#[test]
fn every_inclusion_proof_verifies_for_its_leaf_place_and_tree_alone() {
    let stored = stored(70);
    for size in 1..=70 {
        let root = stored.root(size);
        for index in 0..size {
            let leaf = leaf_hash(&entry(index));
            let proof = inclusion_proof(index, size, stored.reader(size)).unwrap();
            let verify = |leaf: &Hash, index, size, proof: &[Hash], root: &Hash| {
                verify_inclusion(leaf, index, size, proof, root)
            };
            assert_eq!(verify(&leaf, index, size, &proof, &root), Ok(()));
            for other in (0..size).filter(|other| *other != index) {
                verify(&leaf, other, size, &proof, &root).unwrap_err();
            }
            let other_leaf = leaf_hash(b"another");
            assert_eq!(
                verify(&other_leaf, index, size, &proof, &root),
                Err(VerifyProofError::Root)
            );
            verify(&leaf, index, size, &proof, &other_leaf).unwrap_err();
            if let Some((_, shorter)) = proof.split_last() {
                verify(&leaf, index, size, shorter, &root).unwrap_err();
            }
            let longer = [&proof[..], &[root]].concat();
            verify(&leaf, index, size, &longer, &root).unwrap_err();
        }
        assert_eq!(
            verify_inclusion(&root, size, size, &[], &root),
            Err(VerifyProofError::NoSuchLeaf { index: size, size })
        );
        inclusion_proof(size, size, stored.reader(size)).unwrap_err();
    }
}

#[test]
fn every_consistency_proof_verifies_for_its_two_trees_alone() {
    let stored = stored(70);
    for to in 0..=70 {
        for from in 0..=to {
            let (old, new) = (stored.root(from), stored.root(to));
            let proof = consistency_proof(from, to, stored.reader(to)).unwrap();
            assert_eq!(verify_consistency(from, to, &old, &new, &proof), Ok(()));
            let other = leaf_hash(b"another");
            verify_consistency(from, to, &other, &new, &proof).unwrap_err();
            if from > 0 {
                verify_consistency(from, to, &old, &other, &proof).unwrap_err();
            }
            let longer = [&proof[..], &[new]].concat();
            verify_consistency(from, to, &old, &new, &longer).unwrap_err();
            for place in 0..proof.len() {
                let mut changed = proof.clone();
                changed[place].0[31] ^= 1;
                verify_consistency(from, to, &old, &new, &changed).unwrap_err();
                changed.remove(place);
                verify_consistency(from, to, &old, &new, &changed).unwrap_err();
            }
        }
    }
    consistency_proof(3, 2, stored.reader(2)).unwrap_err();
    let root = stored.root(2);
    assert_eq!(
        verify_consistency(3, 2, &root, &root, &[]),
        Err(VerifyProofError::Sizes { from: 3, to: 2 })
    );
}

#[test]
fn a_tree_that_was_rewritten_is_consistent_with_no_older_one() {
    let honest = stored(40);
    let mut rewritten = honest.nodes.clone();
    // Another fifth entry, and all above it made to fit.
    let mut frontier = Frontier::new();
    for index in 0..40 {
        let text = if index == 5 {
            b"forged".to_vec()
        } else {
            entry(index)
        };
        let Ok(()) = frontier.append(leaf_hash(&text), |node, hash| {
            rewritten.insert(node, hash);
            Ok::<_, Infallible>(())
        });
    }
    for from in 6..40 {
        let read = |node| Ok::<_, ReadHashError>(rewritten[&node]);
        let proof = consistency_proof(from, 40, read).unwrap();
        verify_consistency(from, 40, &honest.root(from), &frontier.root(), &proof).unwrap_err();
    }
}

#[test]
fn a_node_that_could_not_be_kept_leaves_the_tree_as_it_was() {
    let mut stored = stored(7);
    let before = stored.frontier.clone();
    let full = ReadHashError { encoding: "full" };
    let keep = |node: Node, _| (node.level < 2).then_some(()).ok_or(full);
    assert_eq!(stored.frontier.append(leaf_hash(b"x"), keep), Err(full));
    assert_eq!(stored.frontier, before);
}

#[test]
fn numbers_of_nodes_have_no_gaps_and_end_where_sizes_end() {
    for (number, node) in [
        (0, Node::leaf(0)),
        (1, Node::leaf(1)),
        (2, Node { level: 1, index: 0 }),
        (3, Node::leaf(2)),
        (6, Node { level: 2, index: 0 }),
    ] {
        assert_eq!(node.stored_index(), Some(number));
        assert_eq!(Node::from_stored_index(number), Some(node));
    }
    assert_eq!(stored_count(70_000), 139_994);
    for node in [
        Node::leaf(MAX_SIZE),
        Node {
            level: 63,
            index: 0,
        },
        Node {
            level: 255,
            index: 0,
        },
        Node {
            level: 62,
            index: 2,
        },
        Node {
            level: 1,
            index: u64::MAX,
        },
    ] {
        assert_eq!(node.stored_index(), None, "{node:?}");
        assert!(!node.is_in(MAX_SIZE));
    }
    assert_eq!(Node::from_stored_index(u64::MAX), None);
    assert!(Node::leaf(MAX_SIZE - 1).stored_index().is_some());
}

#[test]
fn absurd_sizes_are_refused_without_work() {
    let root = Hash::of_empty_tree();
    for size in [MAX_SIZE, MAX_SIZE + 1, u64::MAX] {
        verify_inclusion(&root, 0, size, &[root; 3], &root).unwrap_err();
        verify_inclusion(&root, size - 1, size, &vec![root; 1000], &root).unwrap_err();
        verify_consistency(1, size, &root, &root, &vec![root; 1000]).unwrap_err();
        verify_consistency(size, size, &root, &root, &[root]).unwrap_err();
    }
}

/// The same as another implementation says.
fn others(size: u64) -> ct_merkle::mem_backed_tree::MemoryBackedTree<sha2::Sha256, Vec<u8>> {
    let mut tree = ct_merkle::mem_backed_tree::MemoryBackedTree::new();
    (0..size).for_each(|index| tree.push(entry(index)));
    tree
}

fn bytes_of(proof: &[Hash]) -> Vec<u8> {
    proof.iter().flat_map(|hash| hash.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn roots_and_proofs_are_those_of_another_implementation(
        sizes in (1u64..700, 0u64..700),
        index: prop::sample::Index,
    ) {
        let (from, added) = sizes;
        let to = from + added;
        let stored = stored(to);
        let theirs = others(to);
        let their_root = theirs.root();
        prop_assert_eq!(&stored.root(to).0[..], their_root.as_bytes().as_slice());
        let leaf = index.index(usize::try_from(to).unwrap());
        let at = u64::try_from(leaf).unwrap();
        let proof = inclusion_proof(at, to, stored.reader(to)).unwrap();
        let their_proof = theirs.prove_inclusion(leaf);
        prop_assert_eq!(bytes_of(&proof), their_proof.as_bytes());
        if added > 0 {
            let proof = consistency_proof(from, to, stored.reader(to)).unwrap();
            let their_proof = theirs.prove_consistency(usize::try_from(added).unwrap());
            prop_assert_eq!(bytes_of(&proof), their_proof.as_bytes());
        }
    }

    #[test]
    fn no_proof_makes_the_verifier_panic_or_pass(
        numbers in (any::<u64>(), any::<u64>()),
        proof in prop::collection::vec(any::<[u8; 32]>(), 0..130),
        roots in any::<([u8; 32], [u8; 32])>(),
    ) {
        let proof: Vec<Hash> = proof.into_iter().map(Hash).collect();
        let (old, new) = (Hash(roots.0), Hash(roots.1));
        prop_assert!(verify_inclusion(&old, numbers.0, numbers.1, &proof, &new).is_err());
        prop_assert!(verify_consistency(numbers.0, numbers.1, &old, &new, &proof).is_err());
    }
}
