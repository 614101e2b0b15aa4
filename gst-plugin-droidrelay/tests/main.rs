// SPDX-License-Identifier: MPL-2.0

//! The elements in pipelines: one program, so that it is linked once.

mod applications;
mod brokers;
mod common;
mod credentials;
mod discovery;
mod elements;
mod extremes;
mod keyframes;
mod neighbours;
mod standby;
