//! What reaches an agent: a guest's console segments, envelopes and tasks of a controller, join
//! tokens and the owner's policy. The first byte chooses.
//!
//! Holds: a console's tail is the end of what the segments hold; an envelope opens only as it was
//! signed; a task that is obeyed is for this node, in time, newer, and within the policy.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_agent::join::read_token;
use berth_agent_core::console::tail;
use berth_agent_core::policy::Policy;
use berth_agent_core::task_check::{KnownVm, Trust, claimed_task_id};
use berth_api::agent::{CLOCK_SKEW_SECONDS, SignedEnvelope, TASK_PAYLOAD_TYPE, Task, TaskAction};
use berth_fuzz::input::Input;
use berth_fuzz::seed_values::{NODE_EPOCH, NOW, TASK_KEY_SEED, node_id, tenant_id};
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    match input.byte() % 5 {
        0 => console(&mut input),
        1 => envelope(input.rest()),
        2 => task(&mut input),
        3 => join_token(input.rest()),
        _ => policy(input.rest()),
    }
});

fn console(input: &mut Input<'_>) {
    let (asked, first_bytes) = (usize::from(input.byte()), usize::from(input.byte()));
    let (first, second) = (input.bytes(first_bytes), input.rest());
    let got = tail([first, second], asked);
    assert!(got.bytes.len() <= asked);
    // Both orders are the same console, unless the headers are equal and each is the newer one.
    let starts = [first, second].map(|file| file.get(8..16));
    if starts[0] != starts[1] {
        assert_eq!(got, tail([second, first], asked));
    }
    let all = tail([first, second], usize::MAX);
    assert!(all.bytes.ends_with(&got.bytes));
}

fn trust() -> (SigningKey, Trust) {
    let key = SigningKey::from_seed(&TASK_KEY_SEED).expect("a seed is a key");
    let trust = Trust {
        node_id: node_id(),
        node_epoch: NODE_EPOCH,
        task_keys: vec![key.public()],
        policy: Policy::default(),
    };
    (key, trust)
}

fn envelope(bytes: &[u8]) {
    let Ok(mut envelope) = serde_json::from_slice::<SignedEnvelope>(bytes) else {
        return;
    };
    let claimed = claimed_task_id(&envelope);
    let (_, trust) = trust();
    let Ok(task) = trust.open(&envelope) else {
        return;
    };
    assert_eq!(claimed, Some(task.task_id));
    let mut payload = STANDARD.decode(&envelope.payload).expect("it was opened");
    for position in 0..payload.len() {
        payload[position] ^= 1;
        envelope.payload = STANDARD.encode(&payload);
        assert!(
            trust.open(&envelope).is_err(),
            "byte {position} is not signed"
        );
        payload[position] ^= 1;
    }
}

/// A controller that lost its key to an attacker: whatever is signed, it is checked.
fn task(input: &mut Input<'_>) {
    let known_generation = u64::from(input.byte());
    let Ok(task) = serde_json::from_slice::<Task>(input.rest()) else {
        return;
    };
    let (key, trust) = trust();
    let envelope = seal(&key, TASK_PAYLOAD_TYPE, &task).expect("what was read can be written");
    assert!(trust.open(&envelope).is_ok_and(|opened| opened == task));
    let known = KnownVm {
        tenant_id: tenant_id(),
        generation: known_generation,
        spec: None,
        claims: Vec::new(),
    };
    let known = (known_generation > 0).then_some(&known);
    if trust.check(&task, known, NOW).is_err() {
        return;
    }
    assert_eq!((task.node_id, task.node_epoch), (trust.node_id, NODE_EPOCH));
    assert!(task.not_before <= NOW + CLOCK_SKEW_SECONDS);
    assert!(task.expires_at > NOW - CLOCK_SKEW_SECONDS);
    if let Some(known) = known {
        let repeats = matches!(
            task.action,
            TaskAction::VmConsoleRead { .. } | TaskAction::VmEjectSeed {}
        );
        assert_eq!(task.tenant_id, known.tenant_id);
        assert!(
            task.generation > known.generation || repeats && task.generation == known.generation
        );
    }
    if let TaskAction::VmCreate { spec, claims } = &task.action {
        let most = usize::try_from(trust.policy.max_slots).unwrap_or(usize::MAX);
        assert!(claims.len() <= most);
        assert!(trust.policy.check(spec).is_ok());
        assert!(!spec.image.contains('/') && !spec.image.starts_with('.'));
    }
}

fn join_token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // A refusal has a text for the operator.
    match read_token(text, NOW) {
        Ok((token, url)) => {
            assert!(token.expires_at > NOW);
            assert!(url.as_str().starts_with("http://") || url.as_str().starts_with("HTTP://"));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    assert!(Policy::read(text, 1000, 0o600, 0).is_err());
    assert!(Policy::read(text, 0, 0o622, 0).is_err());
    drop(Policy::read(text, 0, 0o600, 0));
}
