// SPDX-License-Identifier: MPL-2.0

//! By what right each session at the media server was let in, as long as it lasts.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use droidrelay_wire::{Secret, net::url::percent_decode};
use parking_lot::Mutex;

use crate::auth::User;

/// Sessions that are remembered; of those beyond, their own words tell whose they are.
const MAX: usize = 100_000;
/// From being let in until the media server lists the session.
const UNTIL_LISTED: Duration = Duration::from_secs(60);

/// By what right somebody was let in.
#[derive(Clone)]
pub enum Grant {
    /// A user, as they were then.
    User(Arc<User>),
    /// A share link's token.
    Link(Secret),
}

/// By the media server's id of the session.
#[derive(Default)]
pub struct Grants(Mutex<HashMap<String, (Grant, Instant)>>);

impl Grants {
    pub fn give(&self, id: &Option<String>, grant: Grant) {
        let mut all = self.0.lock();
        if let Some(id) = id
            && (all.len() < MAX || all.contains_key(id))
        {
            all.insert(id.clone(), (grant, Instant::now()));
        }
    }

    pub fn of(&self, id: &str) -> Option<Grant> {
        self.0.lock().get(id).map(|(grant, _)| grant.clone())
    }

    /// Forgets sessions that are over: all but those that are listed, and the newest.
    pub fn keep(&self, listed: &HashSet<String>) {
        let lives =
            |id: &String, since: &Instant| listed.contains(id) || since.elapsed() < UNTIL_LISTED;
        self.0.lock().retain(|id, (_, since)| lives(id, since));
    }

    /// What is kept where the media server lists nothing.
    pub fn forget_old(&self) {
        self.keep(&HashSet::new());
    }
}

/// The decoded value of a query's parameter, if it has exactly one of this name.
pub fn parameter(query: &Secret, name: &str) -> Option<Secret> {
    let pairs = query.expose().split('&');
    let mut values = pairs.filter_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then_some(value)
    });
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    percent_decode(value).ok().map(Secret::new)
}
