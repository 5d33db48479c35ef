//! Mounts an EROFS image over its device, by the new mount API: mount(2) cuts its options at a page, and mount(8) of
//! util-linux before 2.40 puts a loop device in between.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::bdi::{self, Bdi};
use crate::privileged;
use crate::privileged::spot::Spot;

/// Offset of the device slot's block count in an image (superblock, `devt_slotoff` 9).
const DEVICE_BLOCKS_AT: usize = 1152 + 0x40;

/// Mounts `image` with `device` read-only at the directory `at`.
///
/// Gives what the kernel has of the mount, if that can be told. The kernel does not compare the device's length with the image; this does.
///
/// # Errors
///
/// With what the kernel wrote into the mount's log, when it refuses.
pub(super) fn mount(image: &Path, device: &Path, at: &Path) -> io::Result<Option<Bdi>> {
    let name = match privileged::mounter() {
        Some(mounter) => mounter.mount_image(image, device, at),
        None => mount_image_here(image, device, &Spot::at(at)?),
    };
    Ok(name?.map(Bdi::named))
}

/// [`mount`] with the rights of this process; gives the kernel's name of the mount's backing device.
pub(crate) fn mount_image_here(image: &Path, device: &Path, spot: &Spot) -> io::Result<Option<String>> {
    let expected = device_length_in(image)?;
    let found = std::fs::metadata(device)?.len();
    if found != expected {
        let message = format!("device {} has {found} bytes, the image needs {expected}", device.display());
        return Err(io::Error::other(message));
    }
    let at = spot.open()?;
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (configured, bdi) = bdi::made_by(|| configure(&context, image, device));
    let mounted = configured
        .and_then(|()| {
            rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
        })
        .and_then(|mount| rustix::mount::move_mount(&mount, "", &at, "", onto));
    mounted.map(|()| bdi).map_err(|error| explain(&context, error))
}

fn configure(context: &OwnedFd, image: &Path, device: &Path) -> Result<(), Errno> {
    rustix::mount::fsconfig_set_flag(context, "ro")?;
    rustix::mount::fsconfig_set_string(context, "source", image)?;
    rustix::mount::fsconfig_set_string(context, "device", device)?;
    rustix::mount::fsconfig_create(context)
}

fn device_length_in(image: &Path) -> io::Result<u64> {
    let mut head = [0; DEVICE_BLOCKS_AT + 4];
    File::open(image)?.read_exact(&mut head)?;
    let blocks = head.last_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(u64::from(blocks) * crate::erofs::BLOCK)
}

/// The kernel's own words, which wait in the context's descriptor, one message a read.
fn explain(context: &OwnedFd, error: Errno) -> io::Error {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        messages.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
    }
    if messages.is_empty() { error.into() } else { io::Error::other(format!("{error}: {}", messages.join("; "))) }
}
