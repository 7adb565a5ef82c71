//! Tests of `tile`: what its own file promises, on its public calls.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::merkle::leaf_hash;

fn tree(size: u64) -> (Frontier, BTreeMap<Node, Hash>) {
    let mut nodes = BTreeMap::new();
    let mut frontier = Frontier::new();
    for index in 0..size {
        let leaf = leaf_hash(&index.to_be_bytes());
        let Ok(()) = frontier.append(leaf, |node, hash| {
            nodes.insert(node, hash);
            Ok::<_, Infallible>(())
        });
    }
    (frontier, nodes)
}

#[test]
fn the_specifications_example_of_seventy_thousand_entries_holds() {
    let all: Vec<Resource> = Resource::all(70_000).collect();
    let of_level = |wanted: u8| -> Vec<(u64, u16)> {
        all.iter()
            .filter_map(|resource| match resource {
                Resource::Tile(tile) if tile.level == wanted => Some((tile.index, tile.width)),
                Resource::Checkpoint | Resource::Tile(_) | Resource::Entries(_) => None,
            })
            .collect()
    };
    assert_eq!(of_level(0).len(), 274);
    assert_eq!(of_level(0).last(), Some(&(273, 112)));
    assert_eq!(of_level(1), [(0, 256), (1, 17)]);
    assert_eq!(of_level(2), [(0, 1)]);
    assert_eq!(of_level(3), []);
    let paths: Vec<String> = all.iter().map(ToString::to_string).collect();
    for path in [
        "tile/0/272",
        "tile/0/273.p/112",
        "tile/1/001.p/17",
        "tile/2/000.p/1",
        "tile/entries/273.p/112",
    ] {
        assert!(paths.iter().any(|found| found == path), "{path}");
    }
    assert_eq!(Resource::all(0).count(), 0);
    assert_eq!(Resource::bundles(256).count(), 1);
}

#[test]
fn paths_are_read_as_they_are_written_and_not_otherwise() {
    for path in [
        "checkpoint",
        "tile/0/000",
        "tile/0/999.p/1",
        "tile/0/x001/000",
        "tile/7/000.p/127",
        "tile/entries/x001/x234/067",
        "tile/entries/x001/x234/067.p/255",
    ] {
        let resource = Resource::parse(path).unwrap();
        assert_eq!(resource.to_string(), path);
    }
    assert_eq!(
        Resource::parse("tile/0/x001/x234/067").unwrap(),
        Resource::Tile(Tile::new(0, 1_234_067, 256).unwrap())
    );
    for path in [
        "",
        "/checkpoint",
        "tile/0/0",
        "tile/0/0000",
        "tile/00/000",
        "tile/0/x000/001",
        "tile/0/001/x000",
        "tile/0/001/000",
        "tile/0/x001",
        "tile/0/+01",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p/1.p/1",
        "tile/8/000",
        "tile/63/000",
        "tile/0/../checkpoint",
        "tile/data/000",
        "tile/7/000",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
    ] {
        assert_eq!(Resource::parse(path), Err(ParsePathError), "{path}");
    }
}

#[test]
fn a_bundle_is_its_entries_and_nothing_beside() {
    let mut bytes = Vec::new();
    for entry in [&b"one"[..], b"", b"three"] {
        encode_entry(&mut bytes, entry).unwrap();
    }
    let bundle = EntryBundle::new(0, 3).unwrap();
    assert_eq!(bundle.decode(&bytes).unwrap(), [&b"one"[..], b"", b"three"]);
    assert_eq!(
        EntryBundle::new(0, 2).unwrap().decode(&bytes),
        Err(DecodeError::BundleTooLong { width: 2, bytes: 7 })
    );
    assert_eq!(
        EntryBundle::new(0, 4).unwrap().decode(&bytes),
        Err(DecodeError::BundleTooShort {
            entries: 3,
            width: 4
        })
    );
    bytes.pop();
    assert_eq!(
        bundle.decode(&bytes),
        Err(DecodeError::BundleTooShort {
            entries: 2,
            width: 3
        })
    );
    let longest = vec![7; MAX_ENTRY_BYTES];
    let mut bytes = Vec::new();
    encode_entry(&mut bytes, &longest).unwrap();
    assert_eq!(
        EntryBundle::new(0, 1).unwrap().decode(&bytes).unwrap(),
        [longest.as_slice()]
    );
    encode_entry(&mut bytes, &[0; MAX_ENTRY_BYTES + 1]).unwrap_err();
}

#[test]
fn every_node_can_be_had_from_the_published_tiles() {
    let size = 66_000;
    let (_, nodes) = tree(size);
    for (node, hash) in &nodes {
        let (tile, range) = Tile::covering(*node, size).unwrap();
        assert!(Resource::all(size).count() > 0 && tile.is_in(size));
        // Reading whole tiles for each node would take long; its own hashes are enough.
        let hashes: Vec<Hash> = tile.nodes().collect::<Vec<_>>()[range]
            .iter()
            .map(|node| nodes[node])
            .collect();
        assert_eq!(combine(&hashes), *hash, "{node:?}");
    }
    assert_eq!(Tile::covering(Node::leaf(size), size), None);
}

#[test]
fn a_tile_of_another_length_is_malformed() {
    let (_, nodes) = tree(300);
    let tile = Tile::new(0, 1, 44).unwrap();
    let bytes = tile
        .encode(|node| nodes.get(&node).copied().ok_or(ParsePathError))
        .unwrap();
    assert_eq!(bytes.len(), 44 * 32);
    assert_eq!(tile.decode(&bytes).unwrap()[0], nodes[&Node::leaf(256)]);
    for wrong in [&bytes[..bytes.len() - 1], &bytes[32..], &[]] {
        tile.decode(wrong).unwrap_err();
    }
    assert!(tile.is_in(300) && !tile.is_in(299));
    assert!(Tile::new(0, 0, 0).is_none() && Tile::new(0, 0, 257).is_none());
}

proptest! {
    #[test]
    fn any_resource_of_a_log_is_found_again_by_its_path(size in 0u64..5_000_000) {
        let paths: Vec<String> = Resource::all(size).map(|resource| resource.to_string()).collect();
        for (resource, path) in Resource::all(size).zip(&paths).step_by(97) {
            prop_assert_eq!(Resource::parse(path), Ok(resource));
            if let Resource::Tile(tile) = resource {
                prop_assert!(tile.is_in(size));
            }
        }
    }

    #[test]
    fn what_a_grown_log_publishes_is_all_that_it_did_not_publish_before(
        old in 0u64..200_000,
        more in 0u64..1_000,
    ) {
        let before: std::collections::HashSet<_> = Resource::all(old)
            .map(|resource| resource.to_string())
            .collect();
        let wanted: Vec<_> = Resource::all(old + more)
            .filter(|resource| !before.contains(&resource.to_string()))
            .collect();
        let found: Vec<_> = Resource::since(old, old + more).collect();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn no_path_makes_the_reader_panic(path in "(tile|checkpoint)?[/x0-9.p]{0,60}") {
        if let Ok(resource) = Resource::parse(&path) {
            prop_assert_eq!(resource.to_string(), path);
        }
    }

    #[test]
    fn no_bytes_make_a_bundle_panic(
        width in 1u16..=256,
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
    ) {
        let bundle = EntryBundle::new(0, width).unwrap();
        if let Ok(entries) = bundle.decode(&bytes) {
            let mut again = Vec::new();
            for entry in entries {
                encode_entry(&mut again, entry).unwrap();
            }
            prop_assert_eq!(again, bytes);
        }
    }
}
