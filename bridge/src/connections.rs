// SPDX-License-Identifier: MPL-2.0

//! Connections of one door: how many there may be, and which of them gives way where there are
//! more. Idle is a connection on which nobody with a right credential is being answered: only
//! such ones give way, the one that has been idle longest first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, de::Error};
use tokio::{sync::Notify, time::Instant};
use tracing::warn;

/// The log tells of full doors this often.
const TELL: Duration = Duration::from_secs(60);

/// How many connections a door has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ConnectionLimits {
    #[serde(deserialize_with = "count")]
    pub total: usize,
    /// Those of one IPv4 address, or of one IPv6 network of 64 bits.
    #[serde(deserialize_with = "count")]
    pub per_address: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        ConnectionLimits {
            total: 4096,
            per_address: 256,
        }
    }
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        count @ 16..=1_000_000 => Ok(count),
        count => Err(D::Error::custom(format!(
            "{count} connections: give 16 to 1000000"
        ))),
    }
}

/// What counts as one address: with IPv6, a host has a whole /64.
pub fn network(peer: IpAddr, length: u32) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
        v4 => v4,
    }
}

/// The connections of one door.
pub struct Connections {
    table: Mutex<Table<Arc<Notify>>>,
    /// Those of whom they come are not counted by address: they speak for many.
    proxies: Vec<IpNet>,
}

impl Connections {
    pub fn new(limits: ConnectionLimits, proxies: Vec<IpNet>) -> Arc<Self> {
        Arc::new(Connections {
            table: Mutex::new(Table::new(limits)),
            proxies,
        })
    }

    /// Takes one more, in the place of an idle one where there are too many; None: each of the
    /// others is being answered.
    pub fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        let peer = peer.to_canonical();
        let speaks_for_many =
            peer.is_loopback() || self.proxies.iter().any(|proxy| proxy.contains(&peer));
        let gives_way = Arc::new(Notify::new());
        let mut table = self.table.lock();
        let entered = table.enter(network(peer, 64), !speaks_for_many, gives_way.clone());
        let told = table.is_full_news(Instant::now());
        drop(table);
        if let Some((gone, refused)) = told {
            warn!(gone, refused, "too many connections: idle ones gave way");
        }
        let (id, evicted) = entered?;
        if let Some(evicted) = evicted {
            evicted.notify_one();
        }
        Some(Seat {
            connections: self.clone(),
            id,
            gives_way,
        })
    }
}

/// One connection's place.
pub struct Seat {
    connections: Arc<Connections>,
    id: u64,
    gives_way: Arc<Notify>,
}

impl Seat {
    /// Returns when the connection is to end, for another one.
    pub async fn gives_way(&self) {
        self.gives_way.notified().await;
    }

    /// Somebody with a right credential is being answered, until what is given back is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.connections.table.lock().busy(self.id);
        Busy(self.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.table.lock().leave(self.id);
    }
}

/// Keeps a connection from being idle.
pub struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.connections.table.lock().idle(self.0.id);
    }
}

/// Pure: `handle` is what ends a connection, for the caller.
struct Table<H> {
    limits: ConnectionLimits,
    next: u64,
    all: HashMap<u64, Entry<H>>,
    addresses: HashMap<IpAddr, Address>,
    /// How many are idle at each address.
    crowds: BTreeSet<(usize, IpAddr)>,
    gone: u64,
    refused: u64,
    told: Option<Instant>,
}

struct Entry<H> {
    address: IpAddr,
    handle: H,
    /// Answers in progress.
    busy: u32,
    /// Its place among the idle ones.
    since: u64,
}

#[derive(Default)]
struct Address {
    count: usize,
    /// By when they became idle.
    idle: BTreeMap<u64, u64>,
}

impl<H> Table<H> {
    fn new(limits: ConnectionLimits) -> Self {
        Table {
            limits,
            next: 0,
            all: HashMap::new(),
            addresses: HashMap::new(),
            crowds: BTreeSet::new(),
            gone: 0,
            refused: 0,
            told: None,
        }
    }

    /// The new one's id, and who gives way to it.
    fn enter(&mut self, address: IpAddr, is_counted: bool, handle: H) -> Option<(u64, Option<H>)> {
        let count = self.addresses.get(&address).map_or(0, |one| one.count);
        let crowd = if is_counted && count >= self.limits.per_address {
            Some(address)
        } else if self.all.len() >= self.limits.total {
            self.crowds.last().map(|(_, address)| *address)
        } else {
            None
        };
        let is_full =
            self.all.len() >= self.limits.total || (is_counted && count >= self.limits.per_address);
        let oldest = |crowd| self.addresses.get(&crowd)?.idle.values().next().copied();
        let evicted = crowd.and_then(oldest).and_then(|id| self.remove(id));
        if is_full && evicted.is_none() {
            self.refused += 1;
            return None;
        }
        self.gone += u64::from(evicted.is_some());
        let id = self.number();
        let entry = Entry {
            address,
            handle,
            busy: 0,
            since: 0,
        };
        self.all.insert(id, entry);
        self.addresses.entry(address).or_default().count += 1;
        self.set_idle(id);
        Some((id, evicted))
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn busy(&mut self, id: u64) {
        let Some(entry) = self.all.get_mut(&id) else {
            return;
        };
        entry.busy += 1;
        if entry.busy == 1 {
            let (address, since) = (entry.address, entry.since);
            self.change_idle(address, |idle| {
                idle.remove(&since);
            });
        }
    }

    fn idle(&mut self, id: u64) {
        let Some(entry) = self.all.get_mut(&id) else {
            return;
        };
        entry.busy = entry.busy.saturating_sub(1);
        if entry.busy == 0 {
            self.set_idle(id);
        }
    }

    fn set_idle(&mut self, id: u64) {
        let since = self.number();
        let Some(entry) = self.all.get_mut(&id) else {
            return;
        };
        entry.since = since;
        let address = entry.address;
        self.change_idle(address, |idle| {
            idle.insert(since, id);
        });
    }

    fn change_idle(&mut self, address: IpAddr, change: impl FnOnce(&mut BTreeMap<u64, u64>)) {
        let idle = &mut self.addresses.entry(address).or_default().idle;
        self.crowds.remove(&(idle.len(), address));
        change(idle);
        if !idle.is_empty() {
            self.crowds.insert((idle.len(), address));
        }
    }

    fn leave(&mut self, id: u64) {
        self.remove(id);
    }

    fn remove(&mut self, id: u64) -> Option<H> {
        let entry = self.all.remove(&id)?;
        self.change_idle(entry.address, |idle| {
            idle.remove(&entry.since);
        });
        if let Some(address) = self.addresses.get_mut(&entry.address) {
            address.count -= 1;
            if address.count == 0 {
                self.addresses.remove(&entry.address);
            }
        }
        Some(entry.handle)
    }

    /// How many gave way and were refused, where that is to be told now.
    fn is_full_news(&mut self, now: Instant) -> Option<(u64, u64)> {
        let is_time = self.told.is_none_or(|told| now >= told + TELL);
        if !is_time || (self.gone, self.refused) == (0, 0) {
            return None;
        }
        self.told = Some(now);
        Some((
            std::mem::take(&mut self.gone),
            std::mem::take(&mut self.refused),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(total: usize, per_address: usize) -> Table<u32> {
        Table::new(ConnectionLimits { total, per_address })
    }

    fn address(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[test]
    fn at_the_limit_of_an_address_its_own_longest_idle_one_gives_way() {
        let mut table = table(100, 2);
        let (busy, _) = table.enter(address(1), true, 1).unwrap();
        table.busy(busy);
        assert_eq!(table.enter(address(1), true, 2).unwrap().1, None);
        assert_eq!(table.enter(address(2), true, 3).unwrap().1, None);
        assert_eq!(table.enter(address(1), true, 4).unwrap().1, Some(2));
        assert_eq!(table.enter(address(1), true, 5).unwrap().1, Some(4));
        // Each of its own is being answered: refused, and nobody else's is touched.
        let (last, gone) = table.enter(address(1), true, 6).unwrap();
        assert_eq!(gone, Some(5));
        table.busy(last);
        assert_eq!(table.enter(address(1), true, 7), None);
        table.idle(busy);
        assert_eq!(table.enter(address(1), true, 8).unwrap().1, Some(1));
        // A proxy speaks for many.
        assert_eq!(table.enter(address(1), false, 9).unwrap().1, None);
    }

    #[test]
    fn a_full_door_takes_the_newcomer_for_one_of_the_address_that_has_most() {
        let mut table = table(10, 8);
        let owner = table.enter(address(9), true, 90).unwrap().0;
        for number in 0..9 {
            let (_, gone) = table
                .enter(address(number % 2), true, number.into())
                .unwrap();
            assert_eq!(gone, None);
        }
        // Address 0 has five.
        assert_eq!(table.enter(address(7), true, 70).unwrap().1, Some(0));
        let gone: Vec<u32> = (0..6)
            .map(|number| {
                table
                    .enter(address(20 + number), true, 0)
                    .unwrap()
                    .1
                    .unwrap()
            })
            .collect();
        assert!(!gone.contains(&90), "{gone:?}");
        assert_eq!(table.all.len(), 10);
        table.leave(owner);
        assert_eq!(table.all.len(), 9);
        assert_eq!(table.enter(address(9), true, 91).unwrap().1, None);
    }

    #[test]
    fn nothing_is_kept_of_connections_that_have_ended() {
        let mut table = table(10, 8);
        for round in 0..50_u8 {
            let (id, _) = table.enter(address(round), true, 0).unwrap();
            table.busy(id);
            table.busy(id);
            table.idle(id);
            table.leave(id);
            table.idle(id);
        }
        assert!(table.all.is_empty() && table.addresses.is_empty() && table.crowds.is_empty());
    }

    #[test]
    fn a_full_door_is_told_once_a_minute() {
        let mut table = table(16, 16);
        let now = Instant::now();
        assert_eq!(table.is_full_news(now), None);
        for number in 0..20 {
            table.enter(address(number), true, 0);
        }
        assert_eq!(table.is_full_news(now), Some((4, 0)));
        table.enter(address(99), true, 0);
        assert_eq!(table.is_full_news(now + TELL / 2), None);
        assert_eq!(table.is_full_news(now + TELL), Some((1, 0)));
    }
}
