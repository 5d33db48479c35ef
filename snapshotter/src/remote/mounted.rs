//! Keeps the mount points of remote snapshots mounted.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing_p2p::digest::Digest;

use super::RemoteLayers;
use crate::service::mountpoint::{self, MountState};

/// Mount points are told apart by their snapshot's id modulo this.
const STRIPES: usize = 16;

/// The mount points of remote snapshots, and who can mount them.
pub(crate) struct MountedLayers {
    layers: Option<Arc<dyn RemoteLayers>>,
    /// Held while one snapshot's directory is mounted or unmounted, so that two requests do not stack two mounts. The
    /// one lock here that is held across I/O: local mounts only, and only those who want the same directory wait.
    stripes: [Mutex<()>; STRIPES],
}

impl MountedLayers {
    pub(crate) fn new(layers: Option<Arc<dyn RemoteLayers>>) -> Self {
        Self { layers, stripes: Default::default() }
    }

    pub(crate) fn layers(&self) -> Option<&Arc<dyn RemoteLayers>> {
        self.layers.as_ref()
    }

    fn lock(&self, id: u64) -> MutexGuard<'_, ()> {
        let stripe = usize::try_from(id % STRIPES as u64).unwrap_or(0);
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts `layer` at `at`, the directory of the snapshot `id`, unless it is mounted there in working order.
    pub(crate) fn ensure(&self, id: u64, layer: &Digest, at: &Path) -> Result<(), String> {
        if matches!(mountpoint::state(at), MountState::Mounted) {
            return Ok(());
        }
        let layers = self.layers.as_ref().ok_or("lazy mounts are switched off; remove the image and pull it again")?;
        let _one_at_a_time = self.lock(id);
        match mountpoint::state(at) {
            MountState::Mounted => return Ok(()),
            MountState::NotMounted => {}
            MountState::Broken(error) => {
                tracing::warn!(digest = %layer, mount = %at.display(), %error, "mount is dead, mounting anew");
                layers.unmount(at);
            }
        }
        layers.mount(layer, at)?;
        match mountpoint::state(at) {
            MountState::Mounted => Ok(()),
            MountState::NotMounted => {
                Err("the mount is not to be seen; do daemon and containerd share a mount namespace?".to_owned())
            }
            MountState::Broken(error) => Err(format!("the new mount does not answer: {error}")),
        }
    }

    /// Detaches whatever is mounted at `at`. Never fails: what cannot be detached is logged and kept from deletion.
    pub(crate) fn release(&self, id: u64, at: &Path) {
        let _one_at_a_time = self.lock(id);
        if let Some(layers) = &self.layers {
            layers.unmount(at);
        }
        if let Err(error) = mountpoint::detach(at) {
            tracing::warn!(mount = %at.display(), %error, "cannot detach a removed layer's mount");
        }
    }
}
