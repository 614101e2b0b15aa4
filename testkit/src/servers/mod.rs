// SPDX-License-Identifier: MPL-2.0

//! What a robot and its viewers connect to.

pub mod balancer;
pub mod bridge;
pub mod cloud;
pub mod mosquitto;
pub mod old_broker;
pub mod other_broker;
pub mod others;
pub mod relay;
pub mod rmqtt;
pub mod silent;
