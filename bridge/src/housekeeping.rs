// SPDX-License-Identifier: MPL-2.0

//! What is done beside the requests, for as long as the bridge runs or somebody looks.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use droidrelay_wire::{
    Command,
    net::http::{Client, Query},
    words::topics::{OFFLINE, ONLINE},
};
use serde::{Deserialize, de::IgnoredAny};
use tokio::{
    select,
    time::{interval, sleep, sleep_until},
};
use tracing::{info, warn};

use crate::{
    bridge::{Bridge, word},
    demand::Settings,
    failure::Failure,
    fleet::BrokerLink,
    note::Note,
    robots::{Robot, all_topics, wanted_topic},
};

/// How often viewer sessions are looked at that may be over.
const LOOK: Duration = Duration::from_secs(15);
/// Bytes of the longest note: half of what the kit's broker takes.
const MAX_NOTE: usize = 8 * 1024;
/// For an answer of MediaMTX's API.
const API_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes notes, ends leases in time, says of robots that they do not poll any more, ends viewer
/// sessions that nobody has ended.
pub async fn run(bridge: Arc<Bridge>) {
    let fleet = &bridge.fleet;
    let mut link = fleet.watch_link();
    let mut look = interval(LOOK);
    let mut marked = None;
    loop {
        // While the broker is away, nobody is told anything.
        let is_up = link.wait_for(|link| matches!(link, BrokerLink::Up(_)));
        let Ok(up) = is_up.await.map(|link| link.clone()) else {
            return;
        };
        if marked.as_ref() != Some(&up) {
            match bridge.mark().await {
                Ok(()) => marked = Some(up),
                // Robots that poll are not answered without it.
                Err(Failure { reason, .. }) => warn!("the broker's order is not known: {reason}"),
            }
        }
        repeat_commands(&bridge).await;
        announce_presence(&bridge).await;
        write_revoked(&bridge).await;
        clear_removed(&bridge).await;
        write_notes(&bridge).await;
        let deadline = fleet.wanted.next_deadline();
        let due = sleep_until(fleet.instant(deadline.unwrap_or_default()));
        select! {
            _ = look.tick() => {
                let is_live = |name: &str| fleet.view(name).is_live();
                bridge.views.end_stale(is_live, fleet.now().wall);
            }
            () = due, if deadline.is_some() => {}
            () = fleet.wanted.wake.notified() => {}
            _ = link.changed() => {}
        }
    }
}

/// Each of these with its robot, where there is one.
fn robots<T>(bridge: &Bridge, named: Vec<(String, T)>) -> impl Iterator<Item = (Robot, T)> {
    named
        .into_iter()
        .filter_map(|(name, rest)| Some((bridge.fleet.directory.robot(&name)?, rest)))
}

/// Where the broker does not take something for the robot: what that is, for the log.
fn tell(result: Result<(), Failure>, robot: &Robot, what: &str) {
    if let Err(Failure { reason, .. }) = result {
        warn!(robot = robot.name, "{what}: {reason}");
    }
}

/// Says to robots that are back what they may have missed; what they have not missed changes
/// nothing.
async fn repeat_commands(bridge: &Bridge) {
    let fleet = &bridge.fleet;
    for (robot, seen) in robots(bridge, fleet.take_returned()) {
        let expiry = bridge.start_expiry;
        for command in fleet.wanted.repeat(&robot.name, seen, expiry, fleet.now()) {
            info!(robot = robot.name, "back: told again: {}", word(&command));
            let sent = bridge.command(&robot, &command).await;
            tell(
                sent,
                &robot,
                "back, but not told again what it may have missed",
            );
        }
    }
}

async fn announce_presence(bridge: &Bridge) {
    let wanted = &bridge.fleet.wanted;
    let named = |names: Vec<String>| names.into_iter().map(|name| (name, ())).collect();
    for (robot, ()) in robots(bridge, named(wanted.expire(bridge.fleet.now()))) {
        info!(robot = robot.name, "polls no more: offline");
        let announced = bridge.announce(&robot, OFFLINE).await;
        if announced.is_ok() && !wanted.is_open(&robot.name) {
            // Nothing is wanted of it: the note goes. One that stays does no harm.
            let _ = bridge.retain(&wanted_topic(&robot.topic), "").await;
        }
        // It stays online to others until it is heard of again.
        tell(announced, &robot, "not announced as offline");
    }
    for (robot, ()) in robots(bridge, named(wanted.unannounced())) {
        let announced = bridge.announce(&robot, ONLINE).await;
        tell(announced, &robot, "not announced as online");
    }
}

async fn clear_removed(bridge: &Bridge) {
    let named = bridge.fleet.uncleared().into_iter().map(|name| (name, ()));
    for (robot, ()) in robots(bridge, named.collect()) {
        for topic in all_topics(&robot.topic) {
            let cleared = bridge.retain(&topic, "").await;
            tell(
                cleared,
                &robot,
                "taken away, but its topics are not cleared",
            );
        }
        info!(robot = robot.name, "taken away: its topics are cleared");
    }
}

async fn write_revoked(bridge: &Bridge) {
    for (robot, revoked) in robots(bridge, bridge.fleet.shares.unwritten()) {
        let kept = bridge.keep_revoked(&robot, &revoked).await;
        tell(kept, &robot, "revoked links are not kept");
    }
}

async fn write_notes(bridge: &Bridge) {
    let fleet = &bridge.fleet;
    let notes: Vec<(String, Note)> = fleet.wanted.unwritten(fleet.now());
    for (robot, note) in robots(bridge, notes) {
        let payload = note.to_payload(MAX_NOTE);
        let noted = bridge.retain(&wanted_topic(&robot.topic), payload).await;
        if noted.is_err() && !fleet.is_up() {
            fleet.wanted.write_again(robot.name.clone());
        } else {
            // Where the broker refuses it, the log says so, and no restart is outlived.
            fleet.wanted.noted(&robot.name, note.version);
        }
        tell(noted, &robot, "what is wanted is not noted");
    }
}

/// Starts the robot for as long as a demand holds, on behalf of `by`.
pub async fn demand(bridge: &Bridge, robot: &Robot, by: &str) {
    let start = Command::Start {
        id: Some(by.to_owned()),
        lease: Some(bridge.mediamtx.lease),
    };
    let started = bridge.command(robot, &start).await;
    tell(started, robot, "a viewer waits, not started");
}

/// Asks the robot for a key frame, for a viewer who begins to get its stream.
pub async fn keyframe(bridge: &Bridge, robot: &Robot) {
    let asked = bridge.command(robot, &Command::Keyframe).await;
    tell(asked, robot, "no key frame asked for");
}

/// Renews the demand while MediaMTX has readers of this robot, and ends with the last of them.
pub async fn follow(bridge: &Bridge, robot: &Robot, by: &str) {
    let Settings { lease, api, .. } = &bridge.mediamtx;
    let mut closing = bridge.closing();
    while bridge.demands.is_seen(&robot.name, by, *lease) {
        select! {
            () = sleep(*lease / 3) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        let Some(api) = api else {
            continue;
        };
        match has_readers(api, &robot.path).await {
            Ok(true) => {
                bridge.demands.seen(&robot.name, by);
                demand(bridge, robot, by).await;
            }
            Ok(false) => {}
            Err(err) => warn!(robot = robot.name, "MediaMTX does not say who looks: {err}"),
        }
    }
}

async fn has_readers(api: &Client, path: &str) -> Result<bool, String> {
    #[derive(Deserialize)]
    struct Path {
        readers: Vec<IgnoredAny>,
    }
    let query = Query::get(format!("/v3/paths/get/{path}"));
    let answer = api.send(&query, API_TIMEOUT).await?;
    match answer.status {
        StatusCode::OK => serde_json::from_slice(&answer.body)
            .map(|path: Path| !path.readers.is_empty())
            .map_err(|err| err.to_string()),
        StatusCode::NOT_FOUND => Ok(false),
        status => Err(format!("{}: {status}", api.url())),
    }
}
