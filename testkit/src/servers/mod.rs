// SPDX-License-Identifier: MPL-2.0

//! What a robot and its viewers connect to.

pub mod balancer;
pub mod bridge;
pub mod cloud;
pub mod mosquitto;
pub mod others;
pub mod relay;
pub mod rmqtt;
pub mod silent;
