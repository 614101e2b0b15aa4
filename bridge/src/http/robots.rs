// SPDX-License-Identifier: MPL-2.0

//! Robots as their viewers see them.

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::request::{Caller, Shared};
use crate::{auth::Right, failure::Failure};

/// All robots that the user may see.
pub async fn list(State(bridge): Shared, Extension(user): Caller) -> Json<Value> {
    let names = bridge.fleet.names();
    let robots: Vec<Value> = names
        .iter()
        .filter(|name| user.may(Right::Look, name))
        .filter_map(|name| bridge.fleet.directory.robot(name))
        .map(|robot| bridge.fleet.describe(&robot))
        .collect();
    Json(json!({ "robots": robots, "broker": bridge.fleet.broker() }))
}

/// One robot.
pub async fn one(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(name): Path<String>,
) -> Result<Json<Value>, Failure> {
    let robot = bridge.robot(&user, Right::Look, &name)?;
    // Right after the connection the retained topics are still on their way.
    bridge.fleet.settled_view(&robot.name).await;
    let mut answer = bridge.fleet.describe(&robot);
    answer["broker"] = bridge.fleet.broker();
    Ok(Json(answer))
}
