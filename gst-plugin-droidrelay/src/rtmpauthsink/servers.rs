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
pub struct Server {
    tls: bool,
    host: String,
    port: u16,
}

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Commands and media go out without waiting for answers; else step by step, with a pause
    /// behind the handshake.
    pub pipelined: bool,
    /// H.265 is announced by `fourCcList`.
    pub four_cc_list: bool,
}

/// What most servers take, and what is the fastest.
const USUAL: Manner = Manner {
    pipelined: true,
    four_cc_list: true,
};

impl Server {
    pub fn of(location: &Location) -> Self {
        Server {
            tls: location.tls,
            host: location.host.clone(),
            port: location.port,
        }
    }

    /// What has worked, or else the usual.
    pub fn manner(&self) -> Manner {
        KNOWN.lock().get(self).copied().unwrap_or(USUAL)
    }

    /// This has worked where something else had not.
    pub fn remember(&self, manner: Manner) {
        let mut known = KNOWN.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(self.clone(), manner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_worked_is_kept_for_that_server_and_memory_is_bounded() {
        let server = |port| {
            let url = format!("rtmp://servers.test:{port}/live/stream");
            Server::of(&Location::parse(&url).unwrap().0)
        };
        let careful = Manner {
            pipelined: false,
            ..USUAL
        };
        server(1).remember(careful);
        assert_eq!(server(1).manner(), careful);
        assert_eq!(server(2).manner(), USUAL);
        for port in 2..=2 * MOST as u16 {
            server(port).remember(careful);
            assert!(KNOWN.lock().len() <= MOST);
        }
    }
}
