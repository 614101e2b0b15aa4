// SPDX-License-Identifier: MPL-2.0

//! What a machine has, whatever line it runs.

use std::{fs, os::unix::process::CommandExt, path::Path, process::Command, time::SystemTime};

use gst::prelude::*;

use super::{
    device,
    report::{Report, missing},
};
use droidrelay_wire::exit::Failure;

const ELEMENTS: [&str; 2] = ["mqttvalve", "rtmpauthsink"];

/// Our own plugin: found, and loadable.
pub fn plugin(report: &Report) -> Result<(), Failure> {
    let what = "plugin droidrelay";
    let plugin = gst::Registry::get().find_plugin("droidrelay").ok_or_else(|| {
        missing(
            what,
            "not found",
            "install gstreamer1.0-droidrelay, or set GST_PLUGIN_PATH to the folder of libgstdroidrelay.so",
        )
    })?;
    let file = plugin.filename().unwrap_or_default();
    let saw = format!("{} in {}", plugin.version(), file.display());
    for name in ELEMENTS {
        gst::ElementFactory::make(name).build().map_err(|err| {
            missing(
                what,
                format_args!("{saw}, but {name} cannot be made: {err}"),
                "install it anew, for this machine's architecture and GStreamer 1.22 or newer",
            )
        })?;
    }
    report.ok(what, saw);
    Ok(())
}

/// Encoders for H.264, those in hardware first.
pub fn encoders(report: &Report) -> Result<(), Failure> {
    let caps = gst::Caps::new_empty_simple("video/x-h264");
    let all = gst::ElementFactory::factories_with_type(
        gst::ElementFactoryType::VIDEO_ENCODER,
        gst::Rank::NONE,
    );
    // Of libav's encoders, those for H.264 wrap what is not there on any of these machines.
    let usable = |one: &&gst::ElementFactory| {
        one.can_src_any_caps(&caps) && !one.name().starts_with("avenc_")
    };
    let (hardware, software): (Vec<_>, Vec<_>) =
        all.iter().filter(usable).partition(|one| is_hardware(one));
    if hardware.is_empty() && software.is_empty() {
        return Err(missing(
            "encoders for H.264",
            "none",
            "install gstreamer1.0-plugins-ugly (x264enc); a camera that delivers H.264 needs none",
        ));
    }
    let names = |some: Vec<&gst::ElementFactory>| {
        let names: Vec<_> = some.iter().map(|one| one.name().to_string()).collect();
        names.join(", ")
    };
    match hardware.is_empty() {
        true => report.note("encoders for H.264 in hardware", "none", ""),
        false => report.ok("encoders for H.264 in hardware", names(hardware)),
    }
    if !software.is_empty() {
        report.ok("encoders for H.264 in software", names(software));
    }
    Ok(())
}

/// Whether a chip does the work.
pub fn is_hardware(factory: &gst::ElementFactory) -> bool {
    let name = factory.name();
    let class = factory.metadata("klass").unwrap_or_default();
    class.contains("Hardware")
        || ["v4l2", "nvv4l2", "omx"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Video devices and the right to open them, for a machine without a line.
pub fn cameras(report: &mut Report) {
    let mut devices: Vec<String> = fs::read_dir("/sys/class/video4linux")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("video"))
        .collect();
    devices.sort();
    if devices.is_empty() {
        report.warning(
            "cameras",
            "no /dev/video*",
            "plug one in; for the camera of a Raspberry Pi look at its cable and at camera_auto_detect=1 in config.txt",
        );
    }
    for device in devices {
        let name = fs::read_to_string(format!("/sys/class/video4linux/{device}/name"));
        let name = name.unwrap_or_default().trim().to_owned();
        report.check(device::look(&Path::new("/dev").join(device), &name, report));
    }
    if gst::ElementFactory::find("libcamerasrc").is_some() {
        report.ok("cameras by libcamera", "libcamerasrc is there");
    } else {
        report.note(
            "cameras by libcamera",
            "no libcamerasrc",
            "for the camera of a Raspberry Pi install gstreamer1.0-libcamera",
        );
    }
}

/// What libcamerasrc needs of the machine beside the camera.
pub fn libcamera(report: &mut Report) {
    report.check(device::heaps(Path::new("/dev/dma_heap"), report));
    let mut isolated = Command::new("true");
    // SAFETY: a system call alone, on the way to another program.
    unsafe {
        isolated.pre_exec(
            || match libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
    }
    if let Err(err) = isolated.status() {
        report.warning(
            "libcamera's modules",
            format_args!("no user and network namespaces here ({err})"),
            "one that the distribution has not signed runs in them, or not at all: for a service RestrictNamespaces=user net; sysctl kernel.unprivileged_userns_clone=1 where there is that",
        );
    }
}

/// The daemon that nvarguscamerasrc asks for its pictures.
pub fn argus(report: &Report) -> Result<(), Failure> {
    const SOCKET: &str = "/tmp/argus_socket";
    let what = "camera daemon of the Jetson";
    std::os::unix::net::UnixStream::connect(SOCKET).map_err(|err| {
        missing(
            what,
            format_args!("{SOCKET}: {err}"),
            "systemctl restart nvargus-daemon, then the robot: a service has the socket that was there when it started",
        )
    })?;
    report.ok(what, "answers");
    Ok(())
}

/// A clock that is wrong makes certificates and leases wrong; a Raspberry Pi has none that runs
/// while it is off.
pub fn clock(report: &Report) -> Result<(), Failure> {
    let remedy = "timedatectl set-ntp true, and a network that lets NTP (UDP 123) through";
    let now = SystemTime::now();
    let built = fs::metadata("/proc/self/exe").and_then(|file| file.modified());
    let shown = glib::DateTime::now_utc()
        .and_then(|now| now.format("%Y-%m-%d %H:%M:%S UTC"))
        .map(String::from)
        .unwrap_or_default();
    if built.is_ok_and(|built| now < built) {
        let saw =
            format!("{shown}, before this program was installed: no certificate will be valid");
        return Err(missing("clock", saw, remedy));
    }
    match is_synchronised() {
        true => report.ok("clock", format_args!("{shown}, kept by NTP")),
        false => report.warning("clock", format_args!("{shown}, not kept by NTP"), remedy),
    }
    Ok(())
}

/// Whether the kernel has been told that its clock is right.
fn is_synchronised() -> bool {
    // SAFETY: without modes it only reads, into a structure of ours; all zeros is one.
    let (state, status) = unsafe {
        let mut clock: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut clock), clock.status)
    };
    state >= 0 && state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0
}
