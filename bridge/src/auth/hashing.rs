// SPDX-License-Identifier: MPL-2.0

//! The one place where slow hashes are computed.

use std::{collections::HashMap, sync::Arc};

use droidrelay_wire::Secret;
use parking_lot::Mutex;
use tokio::{spawn, sync::watch, task::spawn_blocking};

use super::{hash::Hash, recognised::Tag};

/// Credentials that are being checked or wait for it; whoever is known where they come from has as
/// many places more.
const WAITING: usize = 8;

/// What comes of a check: nothing yet, or whether the secret is right.
pub type Verdict = watch::Receiver<Option<bool>>;

type Checks = Arc<Mutex<HashMap<Tag, Verdict>>>;

/// The one place for slow hashes: one at a time, because each takes 19 MiB and a processor, and
/// one for each credential, however many ask for it at once.
#[derive(Default)]
pub struct HashingPlace {
    turn: Arc<tokio::sync::Mutex<()>>,
    checks: Checks,
}

/// Too many wait already.
#[derive(Debug, PartialEq, Eq)]
pub struct IsFull;

impl HashingPlace {
    /// Has it checked whether `secret`, the credential `tag`, is that of `hash`; says whether this
    /// is the first one to ask.
    pub fn check(
        &self,
        tag: Tag,
        hash: Hash,
        secret: Secret,
        is_known: bool,
    ) -> Result<(Verdict, bool), IsFull> {
        let mut checks = self.checks.lock();
        if let Some(verdict) = checks.get(&tag) {
            return Ok((verdict.clone(), false));
        }
        let most = if is_known { 2 * WAITING } else { WAITING };
        if checks.len() >= most {
            return Err(IsFull);
        }
        let (sender, verdict) = watch::channel(None);
        checks.insert(tag, verdict.clone());
        spawn(run(
            self.turn.clone(),
            self.checks.clone(),
            tag,
            sender,
            move || hash.verify(&secret),
        ));
        Ok((verdict, true))
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.checks.lock().is_empty()
    }
}

async fn run(
    turn: Arc<tokio::sync::Mutex<()>>,
    checks: Checks,
    tag: Tag,
    verdict: watch::Sender<Option<bool>>,
    verify: impl FnOnce() -> bool + Send + 'static,
) {
    let _turn = turn.lock().await;
    {
        let mut checks = checks.lock();
        // But for the one in the table, nobody waits any more.
        if verdict.receiver_count() <= 1 {
            checks.remove(&tag);
            return;
        }
    }
    let is_right = spawn_blocking(verify).await.unwrap_or(false);
    checks.lock().remove(&tag);
    verdict.send_replace(Some(is_right));
}
