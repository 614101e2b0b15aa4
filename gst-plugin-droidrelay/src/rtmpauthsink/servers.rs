// SPDX-License-Identifier: MPL-2.0

//! What this process has learnt of servers that are unlike most: how to speak to them.

use std::collections::BTreeMap;

use droidrelay_rtmp::location::Location;
use parking_lot::Mutex;

/// Servers that are remembered; beyond, all are learnt anew.
const MOST: usize = 256;

static KNOWN: Mutex<BTreeMap<Server, Manner>> = Mutex::new(BTreeMap::new());

/// A server as locations name it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Server {
    tls: bool,
    host: String,
    /// Where it is written.
    port: Option<u16>,
}

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Commands and media go out without waiting for answers; else step by step, with a pause
    /// behind the handshake.
    pub pipelined: bool,
    /// H.265 is announced by `fourCcList`.
    pub four_cc_list: bool,
    /// Where it is not the first one of its location.
    port: Option<u16>,
}

/// What most servers take, and what is the fastest.
const USUAL: Manner = Manner {
    pipelined: true,
    four_cc_list: true,
    port: None,
};

impl Server {
    /// What has worked, or else the usual.
    fn manner(&self) -> Manner {
        KNOWN.lock().get(self).copied().unwrap_or(USUAL)
    }

    fn remember(&self, manner: Manner) {
        let mut known = KNOWN.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(self.clone(), manner);
    }
}

/// One try with a server: one manner after another, until one works or none is left.
pub struct Trial {
    server: Server,
    first: Manner,
    manner: Manner,
    /// That have not failed.
    ports: Vec<u16>,
    failures: Vec<String>,
    is_accepted: bool,
}

impl Trial {
    /// Begins with what has worked; step by step where that is more `cautious`.
    pub fn new(location: &Location, cautious: bool) -> Self {
        let server = Server {
            tls: location.tls,
            host: location.host.clone(),
            port: location.port,
        };
        let known = server.manner();
        let first = Manner {
            pipelined: known.pipelined && !cautious,
            ..known
        };
        Trial {
            server,
            first,
            manner: first,
            ports: location.ports(),
            failures: Vec::new(),
            is_accepted: false,
        }
    }

    pub fn manner(&self) -> Manner {
        self.manner
    }

    pub fn port(&self) -> u16 {
        self.manner.port.unwrap_or(self.ports[0])
    }

    /// Nothing that speaks RTMP is at the port; fails with all reasons where there is no other.
    pub fn unreached(&mut self, reason: String) -> Result<(), String> {
        self.failures.push(reason);
        let failed = self.port();
        match self.ports.iter().find(|port| **port != failed) {
            Some(other) => {
                self.manner.port = Some(*other);
                self.ports.retain(|port| *port != failed);
                Ok(())
            }
            None => Err(self.failures.join("; ")),
        }
    }

    /// The server has failed ahead of its acceptance, and perhaps because of a list at `connect`:
    /// is there another manner?
    pub fn goes_on(&mut self, because_of_list: bool) -> bool {
        if self.manner.pipelined {
            self.manner.pipelined = false;
            return true;
        }
        let other = because_of_list && self.manner.four_cc_list;
        self.manner.four_cc_list &= !other;
        other
    }

    /// The server has accepted the session: what has worked where something else had not is
    /// remembered.
    pub fn accepted(&mut self) {
        self.is_accepted = true;
        if self.manner != self.first {
            self.server.remember(self.manner);
        }
    }

    pub fn is_accepted(&self) -> bool {
        self.is_accepted
    }

    /// The server has failed in both orders of commands: nothing is learnt of it.
    pub fn is_undecided(&self) -> bool {
        !self.is_accepted && self.first.pipelined && !self.manner.pipelined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> Location {
        Location::parse(url).unwrap().0
    }

    #[test]
    fn what_has_worked_is_kept_for_that_server_and_memory_is_bounded() {
        let trial = |port| {
            let url = format!("rtmp://servers.test:{port}/live/stream");
            Trial::new(&location(&url), false)
        };
        let mut first = trial(1);
        assert_eq!(first.manner(), USUAL);
        first.accepted();
        assert_eq!(trial(1).manner(), USUAL);
        let mut careful = trial(1);
        assert!(careful.goes_on(true) && careful.is_undecided());
        careful.accepted();
        assert!(!careful.is_undecided());
        assert!(!trial(1).manner().pipelined);
        assert_eq!(trial(2).manner(), USUAL);
        for port in 2..=2 * MOST as u16 {
            let mut careful = trial(port);
            careful.goes_on(false);
            careful.accepted();
            assert!(KNOWN.lock().len() <= MOST);
        }
    }

    #[test]
    fn each_manner_is_tried_once() {
        let mut trial = Trial::new(&location("rtmp://manners.test/live/stream"), false);
        assert!(trial.goes_on(true));
        assert!(!trial.manner().pipelined && trial.manner().four_cc_list);
        assert!(trial.goes_on(true));
        assert!(!trial.manner().four_cc_list);
        assert!(!trial.goes_on(true));
        assert!(trial.is_undecided());

        let mut cautious = Trial::new(&location("rtmp://manners.test/live/stream"), true);
        assert!(!cautious.goes_on(false) && cautious.manner().four_cc_list);
        assert!(!cautious.is_undecided());
        cautious.accepted();
        assert_eq!(
            Trial::new(&location("rtmp://manners.test/live/stream"), false).manner(),
            USUAL
        );
    }

    #[test]
    fn each_port_is_tried_once_and_what_has_worked_comes_first() {
        let url = "rtmps://ports.test/live/stream";
        let mut trial = Trial::new(&location(url), false);
        assert_eq!(trial.port(), 443);
        assert_eq!(trial.unreached("one".into()), Ok(()));
        assert_eq!(trial.port(), 1936);
        assert_eq!(trial.unreached("two".into()), Err("one; two".into()));

        let mut trial = Trial::new(&location(url), false);
        assert_eq!(trial.unreached("one".into()), Ok(()));
        trial.accepted();
        let mut known = Trial::new(&location(url), false);
        assert_eq!(known.port(), 1936);
        assert_eq!(known.unreached("two".into()), Ok(()));
        assert_eq!(known.port(), 443);

        let mut single = Trial::new(&location("rtmps://ports.test:7/live/stream"), false);
        assert_eq!(single.unreached("one".into()), Err("one".into()));
    }
}
