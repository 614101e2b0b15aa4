// SPDX-License-Identifier: MPL-2.0

//! Viewer sessions at the media server: one log line for each, when it has ended.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use tracing::info;

use crate::clock::utc;

/// Viewers that were let in and have not begun to look: those beyond are forgotten.
const MAX_ADMITTED: usize = 1000;
/// Sessions that are open at the same time; those beyond are told without their beginning.
const MAX_OPEN: usize = 100_000;
/// A robot that is not live for so long is looked at by nobody, whatever the media server told.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// Somebody whom the media server was told to let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    pub robot: String,
    /// The user's name, or the share link's id.
    pub by: String,
    pub protocol: String,
    pub address: String,
    /// The media server's id of the session, where it told one.
    pub id: Option<String>,
}

/// A viewer who looks; times are since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewerSession {
    pub who: Admitted,
    pub from: Duration,
}

/// All open sessions.
#[derive(Default)]
pub struct ViewerSessions(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    admitted: VecDeque<Admitted>,
    /// By the media server's id of the reader.
    open: HashMap<String, ViewerSession>,
    /// Robots that are looked at and not live, and since when.
    stale: HashMap<String, Duration>,
}

impl ViewerSessions {
    pub fn admit(&self, who: Admitted) {
        let mut inner = self.0.lock();
        if inner.admitted.contains(&who) {
            return;
        }
        if inner.admitted.len() >= MAX_ADMITTED {
            inner.admitted.pop_front();
        }
        inner.admitted.push_back(who);
    }

    /// A reader begins to look; `kind` is the media server's word for its session.
    pub fn begin(&self, robot: &str, id: &str, kind: &str, now: Duration) {
        let protocol = protocol(kind);
        let mut inner = self.0.lock();
        let is_it = |who: &Admitted| who.id.as_deref() == Some(id);
        let is_like_it =
            |who: &Admitted| who.id.is_none() && who.robot == robot && who.protocol == protocol;
        let found = inner.admitted.iter().position(is_it);
        let found = found.or_else(|| inner.admitted.iter().rposition(is_like_it));
        let who = found.and_then(|at| inner.admitted.remove(at));
        let who = who.unwrap_or_else(|| Admitted {
            robot: robot.to_owned(),
            by: "?".into(),
            protocol: protocol.to_owned(),
            address: "?".into(),
            id: None,
        });
        if inner.open.len() < MAX_OPEN {
            let view = ViewerSession { who, from: now };
            inner.open.entry(id.to_owned()).or_insert(view);
        }
    }

    /// That reader has left.
    pub fn end(&self, id: &str, now: Duration) {
        let view = self.0.lock().open.remove(id);
        if let Some(view) = view {
            log(&view, now, "left");
        }
    }

    /// No reader of this robot is left.
    pub fn end_all_of(&self, robot: &str, now: Duration) {
        for view in self.take(|view| view.who.robot == robot) {
            log(&view, now, "nobody is left");
        }
    }

    /// Ends what no hook has ended: views of robots that have not been live for a minute.
    pub fn end_stale(&self, is_live: impl Fn(&str) -> bool, now: Duration) {
        let mut inner = self.0.lock();
        let robots = inner.open.values().map(|view| view.who.robot.clone());
        let since = |robot: String| {
            let since = inner.stale.get(&robot).copied().unwrap_or(now);
            (robot, since)
        };
        let stale = robots.filter(|robot| !is_live(robot)).map(since);
        let mut stale: HashMap<String, Duration> = stale.collect();
        inner.stale = stale.clone();
        drop(inner);
        stale.retain(|_, since| *since + STALE_AFTER <= now);
        for view in self.take(|view| stale.contains_key(&view.who.robot)) {
            let since = stale[&view.who.robot];
            log(&view, since.max(view.from), "the robot is not live");
        }
    }

    /// The bridge ends: nobody will tell more of them.
    pub fn end_all(&self, now: Duration) {
        for view in self.take(|_| true) {
            log(&view, now, "the bridge ends");
        }
    }

    /// How many there are now.
    pub fn len(&self) -> usize {
        self.0.lock().open.len()
    }

    fn take(&self, of: impl Fn(&ViewerSession) -> bool) -> Vec<ViewerSession> {
        let open = &mut self.0.lock().open;
        open.extract_if(|_, view| of(view))
            .map(|(_, view)| view)
            .collect()
    }
}

fn log(view: &ViewerSession, to: Duration, end: &str) {
    let who = &view.who;
    info!(
        target: "droidrelay_bridge::view",
        robot = who.robot,
        by = who.by,
        protocol = who.protocol,
        address = who.address,
        from = utc(view.from),
        to = utc(to),
        seconds = to.saturating_sub(view.from).as_secs(),
        end,
        "view"
    );
}

/// `rtsp` of `rtspSession`, as the media server's questions have it.
fn protocol(kind: &str) -> &'static str {
    let kind = kind.to_ascii_lowercase();
    ["rtsp", "webrtc", "hls", "rtmp", "srt", "moq"]
        .into_iter()
        .find(|protocol| kind.starts_with(protocol))
        .unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_700_000_000 + seconds)
    }

    fn admitted(robot: &str, by: &str, id: Option<&str>) -> Admitted {
        Admitted {
            robot: robot.into(),
            by: by.into(),
            protocol: "rtsp".into(),
            address: "192.0.2.1".into(),
            id: id.map(Into::into),
        }
    }

    fn who(views: &ViewerSessions, id: &str) -> String {
        views.0.lock().open[id].who.by.clone()
    }

    #[test]
    fn a_reader_is_whom_the_media_server_was_told_to_let_in_under_this_id() {
        let views = ViewerSessions::default();
        views.admit(admitted("r1", "a", Some("1")));
        views.admit(admitted("r1", "b", Some("2")));
        views.admit(admitted("r1", "c", None));
        views.begin("r1", "2", "rtspSession", at(0));
        views.begin("r1", "1", "rtspSession", at(0));
        views.begin("r1", "3", "rtspsSession", at(0));
        views.begin("r1", "4", "rtspSession", at(0));
        let all = ["1", "2", "3", "4"].map(|id| who(&views, id));
        assert_eq!(all, ["a", "b", "c", "?"]);
        views.end("1", at(5));
        views.end("1", at(6));
        assert_eq!(views.len(), 3);
        views.end_all_of("r1", at(7));
        assert_eq!(views.len(), 0);
    }

    #[test]
    fn a_view_that_nobody_ends_is_over_when_its_robot_is_not_live_for_a_minute() {
        let views = ViewerSessions::default();
        views.begin("r1", "1", "hlsSession", at(0));
        views.begin("r2", "2", "webRTCSession", at(0));
        for (now, r1_is_live, left) in
            [(0, true, 2), (10, false, 2), (69, false, 2), (70, false, 1)]
        {
            views.end_stale(|robot| robot == "r2" || r1_is_live, at(now));
            assert_eq!(views.len(), left, "at {now}");
        }
        assert_eq!(who(&views, "2"), "?");
    }

    #[test]
    fn memory_for_those_who_never_look_is_bounded() {
        let views = ViewerSessions::default();
        for id in 0..MAX_ADMITTED + 10 {
            views.admit(admitted("r1", "a", Some(&id.to_string())));
        }
        assert_eq!(views.0.lock().admitted.len(), MAX_ADMITTED);
    }
}
