// SPDX-License-Identifier: MPL-2.0

//! Observes the elements, and tells the log, the bridge, the next process and systemd's watchdog.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use droidrelay_wire::{Command, PublishPhase, RobotState, StreamState, words::fault::Place};

use super::{
    elements::Elements,
    follow::BridgeLink,
    health::Health,
    keep::{self, Keeper},
    snapshot::Snapshot,
    statistics::{self, Counters},
    successor::Handover,
    trigger::{Trigger, Triggers},
};
use crate::{
    log::{Log, Repeats},
    remote::{metrics::Page, poll::PollEvent},
};

/// What has become of a valve's session with its broker.
#[derive(Debug, PartialEq, Eq)]
enum Link {
    Up,
    Lost,
    UpAgain,
}

/// Which valves have a session with their broker, or had one.
#[derive(Default)]
struct Brokers(HashMap<String, bool>);

impl Brokers {
    /// What is new with this valve's session.
    fn look(&mut self, valve: &str, connected: bool) -> Option<Link> {
        match self.0.get_mut(valve) {
            Some(known) => {
                let was = std::mem::replace(known, connected);
                (was != connected).then_some(if connected { Link::UpAgain } else { Link::Lost })
            }
            None if connected => {
                self.0.insert(valve.to_owned(), true);
                Some(Link::Up)
            }
            None => None,
        }
    }
}

pub struct Observer {
    log: Log,
    logged: Repeats,
    health: Health,
    brokers: Brokers,
    triggers: Triggers,
    /// Where somebody keeps leases for the next process.
    keeper: Option<Keeper>,
    bridge: Option<BridgeLink>,
}

impl Observer {
    pub fn new(
        triggers: Vec<Trigger>,
        keeper: Option<Keeper>,
        bridge: Option<BridgeLink>,
        log: Log,
    ) -> Self {
        Observer {
            log,
            logged: Repeats::default(),
            health: Health::default(),
            brokers: Brokers::default(),
            triggers: Triggers::new(triggers),
            keeper,
            bridge,
        }
    }

    /// Gives the valves the leases of the process before, and has them go on with its sessions.
    pub fn restore_leases(&self, elements: &Elements, handed_over: Option<&Handover>) {
        if let Some(handover) = handed_over {
            // A bridge that is polled tells them anew.
            if self.bridge.is_none() {
                elements.take_up(&handover.held, keep::now());
            }
            return;
        }
        match self.keeper.as_ref().map(|keeper| keeper.restore(elements)) {
            None | Some(Ok(0)) => {}
            Some(Ok(count)) => self
                .log
                .info(&format!("leases of the process before: {count}")),
            Some(Err(text)) => self.log.warning(&text),
        }
    }

    pub fn keep_leases(&mut self, elements: &Elements) {
        if let Some(keeper) = &mut self.keeper
            && let Err(text) = keeper.keep(elements)
            && self.logged.is_new("leases", &text)
        {
            self.log.warning(&text);
        }
    }

    /// A clean end: the next process begins closed.
    pub fn forget_leases(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.forget();
        }
    }

    /// Opens the valves where the message is one of a trigger, and logs what a valve or a sink says
    /// of itself. True: it is worth a look at all of them.
    pub fn element_message(
        &mut self,
        source: &str,
        message: &gst::StructureRef,
        elements: &Elements,
    ) -> bool {
        for (id, lease, first) in self.triggers.fired(message, Instant::now()) {
            if first {
                self.log
                    .info(&format!("{source}: {id}: opens for {lease} s"));
            }
            elements.apply(&Command::Start {
                id: Some(id),
                lease: Some(Duration::from_secs(lease.into())),
            });
        }
        let field = |name| message.get::<Option<String>>(name).ok().flatten();
        let state = field("state").unwrap_or_default();
        let (reason, is_bad) = match message.name().as_str() {
            "mqttvalve-state" => {
                let state = StreamState::from(state.as_str());
                let at = field("fault-at").map(|at| Place::from(at.as_str()));
                let is_bad = matches!(state, StreamState::Error | StreamState::Refused)
                    || matches!(at, Some(Place::Source | Place::Encoder | Place::Server));
                // The launcher itself tells of branches.
                let reason = field("last-error").filter(|_| at != Some(Place::Branch));
                (reason, is_bad)
            }
            "rtmpauthsink-state" => {
                let phase = PublishPhase::from(state.as_str());
                let is_bad = matches!(phase, PublishPhase::Backoff | PublishPhase::Refused);
                (field("reason"), is_bad)
            }
            _ => return false,
        };
        let mut text = format!("{source}: {state}");
        if let Some(cause) = field("cause") {
            text += &format!(" ({cause})");
        }
        if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
            text += &format!(": {reason}");
        }
        match (self.logged.is_new(source, &text), is_bad) {
            (true, true) => self.log.warning(&text),
            (true, false) => self.log.info(&text),
            (false, _) => {}
        }
        true
    }

    /// Logs which valves have got, lost or got back their session with the broker.
    pub fn brokers(&mut self, seen: &Snapshot) {
        for valve in seen.valves.iter().filter(|valve| valve.broker) {
            let name = &valve.name;
            match self.brokers.look(name, valve.connected) {
                None => {}
                Some(Link::Up) => self.log.info(&format!("{name}: connected to the broker")),
                Some(Link::UpAgain) => self.log.info(&format!("{name}: connected again")),
                Some(Link::Lost) => {
                    let reason = valve.state.faults.at(&Place::Broker);
                    let reason = reason.iter();
                    let reason: String = reason.map(|reason| format!(": {reason}")).collect();
                    self.log
                        .warning(&format!("{name}: no MQTT session{reason}"));
                }
            }
        }
    }

    /// Tells the bridge of the robot, where it has valves.
    pub fn report(&self, state: Option<RobotState>) {
        if let (Some(bridge), Some(state)) = (&self.bridge, state) {
            bridge.report(state);
        }
    }

    pub fn poll(&mut self, event: PollEvent, elements: &Elements) {
        if let Some(bridge) = &mut self.bridge {
            bridge.handle(event, elements);
        }
    }

    /// Where media is due, but has not moved for `limit`.
    pub fn stalled(&mut self, seen: &Snapshot, limit: Duration) -> Option<String> {
        let now = Instant::now();
        self.health.look(seen.passages(), now);
        let what = self.health.stalled(limit, now)?;
        Some(format!("{what} for {} s", limit.as_secs()))
    }

    /// The pipeline does not play: media is due nowhere, and sessions end with it.
    pub fn pause(&mut self) {
        self.health = Health::default();
        self.brokers = Brokers::default();
    }

    /// Whether frames have left within `limit` wherever they should, for systemd's watchdog.
    pub fn is_healthy(&mut self, limit: Duration) -> bool {
        let is_healthy = self.health.leaves(limit, Instant::now());
        if is_healthy {
            self.logged.forget("watchdog");
        } else if self.logged.is_new("watchdog", "") {
            self.log.error("the watchdog is not fed: no frame leaves");
        }
        is_healthy
    }

    /// The page for Prometheus.
    pub fn metrics<'a>(
        &self,
        playing: bool,
        counters: &Counters,
        branches: impl Iterator<Item = (&'a str, bool)>,
        seen: &Snapshot,
    ) -> String {
        let mut page = Page::default();
        statistics::launcher(&mut page, playing, counters);
        statistics::branches(&mut page, branches);
        if let Some(bridge) = &self.bridge {
            statistics::poll(&mut page, &bridge.counters);
        }
        statistics::triggers(&mut page, self.triggers.counts());
        statistics::elements(&mut page, seen);
        page.add_process();
        page.text()
    }
}
