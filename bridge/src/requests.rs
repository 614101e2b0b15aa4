// SPDX-License-Identifier: MPL-2.0

//! Requests in progress of each user: one credential does not hold everything that there is.

use std::{collections::HashMap, sync::Arc};

use axum::http::StatusCode;
use parking_lot::Mutex;

use crate::{
    auth::{Role, User},
    connections::Busy,
    failure::Failure,
};

/// Of a viewer's or an admin's name, whom many apps may share.
const OF_A_PERSON: usize = 1024;
/// A robot has one poll and one report at a time.
const OF_A_ROBOT: usize = 32;

#[derive(Default)]
pub struct Requests(Arc<Mutex<HashMap<String, usize>>>);

/// A request that is being answered: its user's, on its connection.
pub struct InProgress {
    name: String,
    all: Arc<Mutex<HashMap<String, usize>>>,
    _busy: Option<Busy>,
}

impl Requests {
    /// Counts a request of this user, until what is given back is dropped.
    pub fn begin(&self, user: &User, busy: Option<Busy>) -> Result<InProgress, Failure> {
        let most = match user.role {
            Role::Viewer | Role::Admin => OF_A_PERSON,
            Role::Robot => OF_A_ROBOT,
            // It speaks for everybody.
            Role::MediaMtx => usize::MAX,
        };
        let mut all = self.0.lock();
        let count = all.entry(user.name.clone()).or_default();
        if *count >= most {
            return Err(Failure::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!(
                    "{most} requests of user {:?} are waiting already",
                    user.name
                ),
            ));
        }
        *count += 1;
        Ok(InProgress {
            name: user.name.clone(),
            all: self.0.clone(),
            _busy: busy,
        })
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stolen_robot_has_few_requests_in_progress_and_hinders_nobody_else() {
        let user = |name: &str, role| User {
            name: name.into(),
            role,
            robots: None,
            password: None,
            token: None,
        };
        let requests = Requests::default();
        let robot = user("r1", Role::Robot);
        let mut held: Vec<InProgress> = (0..OF_A_ROBOT)
            .map(|_| requests.begin(&robot, None).unwrap())
            .collect();
        let failure = requests.begin(&robot, None).err().unwrap();
        assert_eq!(failure.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(requests.begin(&user("owner", Role::Admin), None).is_ok());
        held.pop();
        held.push(requests.begin(&robot, None).unwrap());
        held.clear();
        assert!(requests.0.lock().is_empty());
    }
}
