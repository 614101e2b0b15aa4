// SPDX-License-Identifier: MPL-2.0

//! The limit on failed tries, by address and by network.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, de::Error};

use crate::{clock::seconds, connections::network};

/// Stands for every address that cannot be read.
pub const UNREADABLE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Reads an address as servers and proxies write it: with a zone, in brackets, with a port.
pub fn readable(text: &str) -> IpAddr {
    let text = text.trim();
    let with_port = || {
        text.parse()
            .map(|address: std::net::SocketAddr| address.ip())
    };
    let plain = text.trim_matches(['[', ']']);
    let plain = plain.split_once('%').map_or(plain, |(address, _)| address);
    let address = plain.parse().or_else(|_| with_port());
    address.map_or(UNREADABLE, |address: IpAddr| address.to_canonical())
}

/// How many failed tries from one address are borne.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureLimit {
    /// Tries that may fail at once.
    #[serde(deserialize_with = "burst")]
    pub burst: u32,
    /// The time in which that many are forgotten.
    #[serde(deserialize_with = "seconds::<_, 1, 86_400>")]
    pub window: Duration,
}

impl Default for FailureLimit {
    fn default() -> Self {
        FailureLimit {
            burst: 10,
            window: Duration::from_secs(60),
        }
    }
}

fn burst<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom(
            "burst is 0: nobody could ever come in; give at least 1",
        )),
        burst => Ok(burst),
    }
}

/// Networks that one failed try is counted for, by their length, and how many times the burst of
/// one address each of them bears: who has a whole /48 has no more than sixteen addresses' tries.
const NETWORKS: [(u32, u32); 3] = [(64, 1), (56, 4), (48, 16)];

/// Failed tries by network, a leaky bucket each; `now` is an argument.
pub struct Failures {
    limit: FailureLimit,
    /// When all tries of a network will be forgotten: each one takes its share of the window.
    forgotten_at: HashMap<(u32, IpAddr), Instant>,
}

/// Networks that are remembered; beyond it, some attacker's is forgotten.
const MAX_PEERS: usize = 10_000;

/// The buckets of an address; an IPv4 address has but its own.
fn buckets(peer: IpAddr) -> impl Iterator<Item = ((u32, IpAddr), u32)> {
    let of_its_own = if peer.to_canonical().is_ipv4() || peer == UNREADABLE {
        1
    } else {
        NETWORKS.len()
    };
    let bucket = move |(length, factor)| ((length, network(peer, length)), factor);
    NETWORKS.into_iter().take(of_its_own).map(bucket)
}

impl Failures {
    pub fn new(limit: FailureLimit) -> Self {
        Failures {
            limit,
            forgotten_at: HashMap::new(),
        }
    }

    /// How long `peer` has to wait before it may try again.
    pub fn locked_for(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let wait = |(bucket, factor)| {
            let at = self.forgotten_at.get(&bucket)?;
            let after_another = at.saturating_duration_since(now) + self.share(factor);
            let wait = after_another.saturating_sub(self.limit.window);
            (!wait.is_zero()).then_some(wait)
        };
        buckets(peer).filter_map(wait).max()
    }

    pub fn charge(&mut self, peer: IpAddr, now: Instant) {
        for (bucket, factor) in buckets(peer) {
            if self.forgotten_at.len() >= MAX_PEERS {
                self.forget(now);
            }
            let share = self.share(factor);
            let at = self.forgotten_at.entry(bucket).or_insert(now);
            *at = now.max(*at) + share;
        }
    }

    pub fn refund(&mut self, peer: IpAddr) {
        for (bucket, factor) in buckets(peer) {
            let share = self.share(factor);
            if let Some(at) = self.forgotten_at.get_mut(&bucket) {
                *at = at.checked_sub(share).unwrap_or(*at);
            }
        }
    }

    fn forget(&mut self, now: Instant) {
        self.forgotten_at.retain(|_, at| *at > now);
        if self.forgotten_at.len() >= MAX_PEERS
            && let Some(bucket) = self.forgotten_at.keys().next().copied()
        {
            self.forgotten_at.remove(&bucket);
        }
    }

    /// The time in which one try is forgotten, where so many times the burst is borne.
    fn share(&self, factor: u32) -> Duration {
        self.limit.window / self.limit.burst.saturating_mul(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: FailureLimit = FailureLimit {
        burst: 3,
        window: Duration::from_secs(30),
    };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn failures_are_forgotten_with_time_and_counted_by_ipv6_network() {
        let mut failures = Failures::new(LIMIT);
        let now = Instant::now();
        let [one, same, other] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(address);
        for _ in 0..3 {
            assert_eq!(failures.locked_for(one, now), None);
            failures.charge(one, now);
        }
        assert_eq!(
            failures.locked_for(same, now),
            Some(Duration::from_secs(10))
        );
        assert_eq!(failures.locked_for(other, now), None);
        assert_eq!(
            failures.locked_for(one, now + Duration::from_secs(10)),
            None
        );
    }

    #[test]
    fn whoever_has_many_networks_has_not_so_many_tries() {
        let now = Instant::now();
        let tries = |shift: u32| {
            let mut failures = Failures::new(LIMIT);
            let one = u128::from_be_bytes("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
            let address = |number: u128| IpAddr::V6(Ipv6Addr::from_bits(one + (number << shift)));
            let tried = (0..1000).map(address).take_while(|address| {
                let is_free = failures.locked_for(*address, now).is_none();
                failures.charge(*address, now);
                is_free
            });
            tried.count()
        };
        assert_eq!(tries(0), 3, "addresses of one /64");
        assert_eq!(tries(64), 12, "many /64 of one /56");
        assert_eq!(tries(72), 48, "many /56 of one /48");
        assert_eq!(tries(80), 1000, "of nobody's one network");
        let mut failures = Failures::new(LIMIT);
        for number in 0..12 {
            failures.charge(address(&format!("2001:db8:0:{number:x}::1")), now);
        }
        assert!(
            failures
                .locked_for(address("2001:db8:0:ff::1"), now)
                .is_some()
        );
        assert_eq!(failures.locked_for(address("2001:db8:0:100::1"), now), None);
        assert_eq!(failures.locked_for(address("192.0.2.1"), now), None);
    }

    #[test]
    fn the_memory_for_failures_is_bounded() {
        let mut failures = Failures::new(LIMIT);
        let now = Instant::now();
        for peer in 0..(MAX_PEERS as u32 + 50) {
            failures.charge(IpAddr::from(peer.to_be_bytes()), now);
        }
        assert_eq!(failures.forgotten_at.len(), MAX_PEERS);
    }

    #[test]
    fn an_address_is_read_however_it_is_written_and_is_else_one_of_its_own() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1:4711", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("unknown", "::"),
            ("", "::"),
        ] {
            assert_eq!(readable(text).to_string(), expected, "{text:?}");
        }
        let mut failures = Failures::new(LIMIT);
        let now = Instant::now();
        for _ in 0..10 {
            failures.charge(readable("unknown"), now);
        }
        assert!(failures.locked_for(UNREADABLE, now).is_some());
        assert_eq!(failures.locked_for(address("2001:db8::1"), now), None);
    }
}
