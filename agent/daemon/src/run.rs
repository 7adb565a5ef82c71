//! `berth-agent run`: the daemon's wiring, from the descriptors it inherits to its last word.

use std::convert::Infallible;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use berth_agent::agent::Agent;
use berth_agent::config::Config;
use berth_agent::controller::{Controller, ControllerUrl};
use berth_agent::host::Host;
use berth_agent::log_memory::LogMemory;
use berth_agent::node::{Node, load_key};
use berth_agent::slot_sources::{ApprovalFolder, SlotChanges};
use berth_agent::slots::SlotHost;
use berth_agent::sync_loop::SyncLoop;
use berth_agent_core::task_check::Trust;
use berth_agent_host::capacity::{self, KVM_DEVICE};
use berth_agent_host::folder_watch::FolderWatch;
use berth_agent_host::host_facts;
use berth_agent_host::images::Images;
use berth_agent_host::service_manager::{DescriptorStore, ServiceManager, inherited_descriptors};
use berth_agent_host::slot_devices::{DRIVER_LIMIT, LinuxSlotDevices};
use berth_agent_host::slot_files::LinuxSlotFiles;
use berth_agent_host::vm_files::{LinuxVmFiles, VmFiles};
use berth_agent_host::vmm_unit::{SystemdUnits, VmmUnits};
use tokio::signal::unix::{SignalKind, signal};

/// Run until SIGTERM or SIGINT. VMs go on.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    let inherited =
        inherited_descriptors().context("could not take over the descriptors from systemd")?;
    crate::logging::start();
    // Held until the process ends: two agents on one state would both act on every task.
    let _lock = lock(config)?;
    let node = Node::load(&config.state_dir)?;
    let key = Arc::new(load_key(&config.state_dir)?);
    let Some(task_keys) = node.task_keys() else {
        bail!("node.json holds a task key that is not a key; join again");
    };
    let trust = Trust {
        node_id: node.node_id,
        node_epoch: node.node_epoch,
        task_keys,
        policy: config.read_policy(berth_agent_host::capacity::own_uid())?,
    };
    let slots = SlotHost {
        devices: Arc::new(LinuxSlotDevices::new(Path::new("/"), DRIVER_LIMIT)),
        files: Arc::new(LinuxSlotFiles::new(config.state_dir.join("slots"))?),
        approvals: Arc::new(ApprovalFolder::new(&config.slots)),
        node_id: node.node_id,
        key: Arc::clone(&key),
    };
    let Some(ledger_key) = node.ledger_key() else {
        bail!("node.json holds a ledger key that is not a key; join again");
    };
    let log = LogMemory::open(&config.state_dir, (node.node_id, &key), ledger_key)?;
    let sync_loop = SyncLoop {
        controller: Controller::new(
            ControllerUrl::parse(&node.controller_url)?,
            config.controller_ca.as_deref(),
        )?,
        node,
        key,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        state_dir: config.state_dir.clone(),
    };
    let parts = (slots, Arc::new(log));
    crate::runtime()?.block_on(serve(config, trust, sync_loop, parts, inherited))
}

fn lock(config: &Config) -> anyhow::Result<File> {
    let path = config.state_dir.join("agent.lock");
    let file = File::create(&path).with_context(|| format!("could not open {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("another berth-agent runs on {}", config.state_dir.display());
    }
    Ok(file)
}

async fn serve(
    config: &Config,
    trust: Trust,
    sync_loop: SyncLoop,
    (slots, log): (SlotHost, Arc<LogMemory>),
    inherited: Vec<(String, std::os::fd::OwnedFd)>,
) -> anyhow::Result<()> {
    let manager = Arc::new(
        ServiceManager::from_environment().context("could not reach the service manager")?,
    );
    let empty = std::path::absolute(config.state_dir.join("vmm-root"))?;
    let units = SystemdUnits::connect(empty).await?;
    let disconnected = units.disconnected();
    let host = Host {
        units,
        files: Arc::new(LinuxVmFiles::new(config.state_dir.join("vms"))?),
        store: Arc::clone(&manager),
        slots,
        images: Images::new(config.state_dir.join("images"))
            .context("could not open the images")?,
        vmm: config.vmm.clone(),
        kvm: PathBuf::from(KVM_DEVICE),
        host_facts: OnceLock::new(),
        boot_id: capacity::identity()?.boot_id,
        log,
    };
    find_facts(&host);
    let images = FolderWatch::open(host.images.root()).context("could not watch the images")?;
    // Listened to before the first look, so that no change falls in between.
    let changes = SlotChanges::open(&config.slots);
    let agent = Agent::adopt(host, trust, inherited).await?;
    manager.ready()?;
    tracing::info!(NODE_ID = %sync_loop.node.node_id, "ready");
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).context("could not catch SIGTERM")?,
        signal(SignalKind::interrupt()).context("could not catch SIGINT")?,
    );
    tokio::select! {
        () = sync_loop.run(&agent) => bail!("the sync loop ended"),
        failed = keep_alive(&manager) => failed?,
        () = tell_of_images(images, &agent) => bail!("the watch over the images ended"),
        never = look_at_slots(changes, &agent) => match never {},
        () = disconnected => bail!("the connection to systemd ended"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    manager.stopping()?;
    tracing::info!("stopping; VMs go on");
    Ok(())
}

/// Find out what every start needs to know of this host's KVM. Guests start without it, too.
fn find_facts<U: VmmUnits, F: VmFiles, S: DescriptorStore>(host: &Host<U, F, S>) {
    match host_facts::collect(&host.vmm) {
        // Those that were found before are as good.
        Ok(facts) => drop(host.host_facts.set(facts)),
        Err(error) => tracing::warn!(%error, "guests start without host facts"),
    }
}

/// Make every change of the images news for the controller.
async fn tell_of_images<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    mut watch: FolderWatch,
    agent: &Agent<U, F, S>,
) {
    while watch.changed().await {
        agent.host_changed();
    }
}

/// Look at the slots whenever something about them may have changed. Whether there is KVM is told
/// the controller at once: at boot it may come after this agent, and until then no VM is placed here.
async fn look_at_slots<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    mut changes: SlotChanges,
    agent: &Agent<U, F, S>,
) -> Infallible {
    // What is known of KVM was asked before anything else: it may have come since.
    let mut had_kvm = agent.host().host_facts.get().is_some();
    loop {
        changes.next().await;
        let has_kvm = capacity::has_kvm();
        if std::mem::replace(&mut had_kvm, has_kvm) != has_kvm {
            tracing::info!("KVM {}", if has_kvm { "is there" } else { "is gone" });
            find_facts(agent.host());
            agent.host_changed();
        }
        agent.look_at_slots().await;
    }
}

/// Tell systemd that the runtime's one thread is not stuck.
async fn keep_alive(manager: &ServiceManager) -> anyhow::Result<()> {
    let Some(interval) = manager.watchdog_interval() else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        manager.alive()?;
    }
}
