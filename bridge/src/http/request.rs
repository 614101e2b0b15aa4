// SPDX-License-Identifier: MPL-2.0

//! What handlers take of a request.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{
        Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
};
use droidrelay_wire::words::poll::MAX_WAIT;
use serde::de::DeserializeOwned;

use crate::{auth::User, bridge::Bridge, failure::Failure};

pub type Shared = State<Arc<Bridge>>;
/// Who asks.
pub type Caller = Extension<Arc<User>>;
/// The query, or what is wrong with it.
pub type Parameters<T> = Result<Query<T>, QueryRejection>;
/// The body, or what is wrong with it.
pub type Payload = Result<Bytes, BytesRejection>;

pub fn parameters<T>(query: Parameters<T>) -> Result<T, Failure> {
    query
        .map(|Query(query)| query)
        .map_err(|err| Failure::bad_request(err.body_text()))
}

/// A time to wait for something, as a query names it.
pub fn wait_from_seconds(wait: f64) -> Result<Duration, Failure> {
    if (0.0..=MAX_WAIT).contains(&wait) {
        Ok(Duration::from_secs_f64(wait))
    } else {
        Err(Failure::bad_request(format!(
            "wait {wait}: give seconds from 0 to {MAX_WAIT}"
        )))
    }
}

/// A body of JSON, or what is wrong with it.
pub fn json<T: DeserializeOwned>(body: Payload) -> Result<T, Failure> {
    let body = body.map_err(|err| Failure::new(err.status(), err.body_text()))?;
    serde_json::from_slice(&body)
        // Where, and not what: it may be a password.
        .map_err(|err| {
            let (line, column) = (err.line(), err.column());
            Failure::bad_request(format!(
                "the body is not the JSON that is expected here (line {line}, column {column})"
            ))
        })
}
