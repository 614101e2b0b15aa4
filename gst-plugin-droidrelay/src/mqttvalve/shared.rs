// SPDX-License-Identifier: MPL-2.0

//! Valves of this process that are fed by the same elements (a camera and a tee for two
//! qualities): one of them stops and starts those for all. It leads; the others tell it whether
//! they are open, and go by its status.

use std::{collections::BTreeMap, sync::Arc};

use gst::prelude::*;
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::status::Status;

type Wake = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Claims {
    last_number: u64,
    claims: Vec<Claim>,
}

/// Elements, and the valves that they feed.
struct Claim {
    /// Their addresses: the leader holds them.
    elements: Vec<usize>,
    leader: u64,
    members: BTreeMap<u64, Member>,
    /// Why the camera cannot deliver, each with its number.
    fault: (u64, Option<String>),
}

struct Member {
    open: bool,
    wake: Wake,
    status: Arc<Status>,
}

static CLAIMS: Lazy<Mutex<Claims>> = Lazy::new(Mutex::default);

/// Whether a valve of this process stops `element`.
pub fn is_claimed(element: &gst::Element) -> bool {
    let address = element.as_ptr() as usize;
    let claims = CLAIMS.lock();
    let mut claims = claims.claims.iter();
    claims.any(|claim| claim.elements.contains(&address))
}

/// What a valve is among those that share its upstream.
#[derive(Debug)]
pub enum Role {
    Leads {
        others_open: bool,
    },
    /// With the leader's status, and its last fault, if that is news.
    Follows {
        leader: Arc<Status>,
        fault: Option<String>,
    },
}

/// A valve that may be among several; leaves when dropped.
pub struct Membership {
    number: u64,
    wake: Wake,
    status: Arc<Status>,
    /// The fault that it has been told of.
    told: u64,
}

impl Membership {
    /// `wake` is called when another valve has said something.
    pub fn new(status: Arc<Status>, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let mut claims = CLAIMS.lock();
        claims.last_number += 1;
        Membership {
            number: claims.last_number,
            wake: Arc::new(wake),
            status,
            told: 0,
        }
    }

    /// Says which elements feed this valve, and whether it is open.
    pub fn join(&mut self, elements: &[gst::Element], open: bool) -> Role {
        let addresses: Vec<usize> = elements.iter().map(|it| it.as_ptr() as usize).collect();
        let overlaps = |claim: &Claim| claim.elements.iter().any(|it| addresses.contains(it));
        let mut all = CLAIMS.lock();
        let is_elsewhere =
            |claim: &Claim| claim.members.contains_key(&self.number) && !overlaps(claim);
        if all.claims.iter().any(is_elsewhere) {
            drop(all);
            self.leave();
            all = CLAIMS.lock();
        }
        let at = all.claims.iter().position(overlaps).unwrap_or_else(|| {
            all.claims.push(Claim {
                elements: Vec::new(),
                leader: self.number,
                members: BTreeMap::new(),
                fault: (0, None),
            });
            all.claims.len() - 1
        });
        let claim = &mut all.claims[at];
        let leads = claim.leader == self.number;
        if leads {
            claim.elements = addresses;
        }
        let member = Member {
            open,
            wake: self.wake.clone(),
            status: self.status.clone(),
        };
        let before = claim.members.insert(self.number, member);
        let is_news = before.as_ref().is_none_or(|before| before.open != open);
        let leader = &claim.members[&claim.leader];
        let (wake, status) = (leader.wake.clone(), leader.status.clone());
        let mut others = claim.members.iter().filter(|(it, _)| **it != self.number);
        let others_open = others.any(|(_, member)| member.open);
        let (number, fault) = claim.fault.clone();
        drop(all);
        drop(before);
        if leads {
            return Role::Leads { others_open };
        }
        if is_news {
            wake();
        }
        let before = std::mem::replace(&mut self.told, number);
        Role::Follows {
            leader: status,
            fault: fault.filter(|_| before < number),
        }
    }

    /// The leader has changed something, or the camera has a `fault`: the others look.
    pub fn tell(&self, fault: Option<&str>) {
        let mut all = CLAIMS.lock();
        let Some(claim) = all.claims.iter_mut().find(|it| it.leader == self.number) else {
            return;
        };
        if let Some(fault) = fault {
            claim.fault = (claim.fault.0 + 1, Some(fault.to_owned()));
        }
        let others = claim.members.iter().filter(|(it, _)| **it != self.number);
        let wakes: Vec<Wake> = others.map(|(_, member)| member.wake.clone()).collect();
        drop(all);
        for wake in wakes {
            wake();
        }
    }

    /// Shares nothing any more; where it has led, the first of the others to look leads next.
    pub fn leave(&mut self) {
        let mut wakes = Vec::new();
        let mut gone = Vec::new();
        let mut all = CLAIMS.lock();
        all.claims.retain_mut(|claim| {
            let was_member = claim.members.remove(&self.number);
            let is_over = claim.leader == self.number || claim.members.is_empty();
            if was_member.is_some() {
                wakes.extend(claim.members.values().map(|member| member.wake.clone()));
            }
            if is_over {
                gone.extend(std::mem::take(&mut claim.members));
            }
            gone.extend(was_member.map(|member| (self.number, member)));
            !is_over
        });
        drop(all);
        drop(gone);
        self.told = 0;
        for wake in wakes {
            wake();
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn member() -> (Membership, Arc<AtomicU32>) {
        let woken = Arc::new(AtomicU32::new(0));
        let counter = woken.clone();
        let wake = move || {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        (Membership::new(Arc::default(), wake), woken)
    }

    fn elements(count: usize) -> Vec<gst::Element> {
        gst::init().unwrap();
        (0..count).map(|_| gst::Bin::new().upcast()).collect()
    }

    fn leads(role: Role) -> Option<bool> {
        match role {
            Role::Leads { others_open } => Some(others_open),
            Role::Follows { .. } => None,
        }
    }

    #[test]
    fn the_first_one_leads_and_hears_of_the_others() {
        let line = elements(3);
        let ((mut first, first_woken), (mut second, second_woken)) = (member(), member());
        assert_eq!(leads(first.join(&line[..2], false)), Some(false));
        assert_eq!(leads(second.join(&line[1..], false)), None);
        assert_eq!(first_woken.load(Ordering::SeqCst), 1);
        assert_eq!(leads(second.join(&line[1..], true)), None);
        assert_eq!(leads(second.join(&line[1..], true)), None);
        assert_eq!(first_woken.load(Ordering::SeqCst), 2, "news only");
        assert_eq!(leads(first.join(&line[..2], false)), Some(true));
        first.tell(Some("unplugged"));
        assert_eq!(second_woken.load(Ordering::SeqCst), 1);
        let Role::Follows { fault, .. } = second.join(&line[1..], true) else {
            panic!("it follows")
        };
        assert_eq!(fault.as_deref(), Some("unplugged"));
        let Role::Follows { fault, .. } = second.join(&line[1..], true) else {
            panic!("it follows")
        };
        assert_eq!(fault, None, "told once");
        drop(first);
        assert_eq!(second_woken.load(Ordering::SeqCst), 2);
        assert_eq!(leads(second.join(&line[1..], true)), Some(false));
    }

    #[test]
    fn who_is_fed_by_others_shares_nothing_any_more() {
        let line = elements(4);
        let ((mut first, first_woken), (mut second, _)) = (member(), member());
        first.join(&line[..2], false);
        second.join(&line[1..2], true);
        assert_eq!(leads(second.join(&line[2..], true)), Some(false));
        assert_eq!(first_woken.load(Ordering::SeqCst), 2);
        assert_eq!(leads(first.join(&line[..2], false)), Some(false));
    }
}
