// SPDX-License-Identifier: MPL-2.0

//! The launcher as a process: one program, so that it is linked once.

mod branches;
mod common;
mod devices;
mod doctor;
mod launcher;
mod options;
mod poll;
mod supervision;
