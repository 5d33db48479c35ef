//! Keeps the mount points of remote snapshots mounted.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing_p2p::digest::Digest;

use super::RemoteLayers;
use crate::mountpoint::{self, MountState};

/// Mount points are told apart by their snapshot's id modulo this.
const STRIPES: usize = 16;

/// The mount points of remote snapshots, and who can mount them.
pub(crate) struct MountedLayers {
    layers: Option<Arc<dyn RemoteLayers>>,
    /// Snapshots that this process mounted, or found mounted by a former one and in working order: metadata answer in any
    /// case, so who mounts layers must say.
    ours: Mutex<HashSet<u64>>,
    /// Held while one snapshot's directory is mounted or unmounted, so that two requests do not stack two mounts. The
    /// one lock here that is held across I/O: local mounts only, and only those who want the same directory wait.
    stripes: [Mutex<()>; STRIPES],
}

impl MountedLayers {
    pub(crate) fn new(layers: Option<Arc<dyn RemoteLayers>>) -> Self {
        Self { layers, ours: Mutex::default(), stripes: Default::default() }
    }

    pub(crate) fn layers(&self) -> Option<&Arc<dyn RemoteLayers>> {
        self.layers.as_ref()
    }

    fn lock(&self, id: u64) -> MutexGuard<'_, ()> {
        let stripe = usize::try_from(id % STRIPES as u64).unwrap_or(0);
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ours(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ours(&self, id: u64, at: &Path) -> bool {
        self.ours().contains(&id) && matches!(mountpoint::state(at), MountState::Mounted)
    }

    /// Mounts `layer` at `at`, the directory of the snapshot `id`, unless this process did and it is in working order.
    pub(crate) fn ensure(
        &self,
        id: u64,
        layer: &Digest,
        at: &Path,
        lowers: impl FnOnce() -> Vec<PathBuf>,
    ) -> Result<(), String> {
        if self.is_ours(id, at) {
            return Ok(());
        }
        let layers = self.layers.as_ref().ok_or("lazy mounts are switched off; remove the image and pull it again")?;
        let _one_at_a_time = self.lock(id);
        if self.is_ours(id, at) {
            return Ok(());
        }
        layers.mount(layer, at, &lowers())?;
        match mountpoint::state(at) {
            MountState::Mounted => {
                self.ours().insert(id);
                Ok(())
            }
            MountState::NotMounted => {
                Err("the mount is not to be seen; do daemon and containerd share a mount namespace?".to_owned())
            }
            MountState::Broken(error) => Err(format!("the new mount does not answer: {error}")),
        }
    }

    /// Detaches whatever is mounted at `at`. Never fails: what cannot be detached is logged and kept from deletion.
    pub(crate) fn release(&self, id: u64, at: &Path) {
        let _one_at_a_time = self.lock(id);
        self.ours().remove(&id);
        if let Some(layers) = &self.layers {
            layers.unmount(at);
        }
        if let Err(error) = mountpoint::detach(at) {
            tracing::warn!(mount = %at.display(), %error, "cannot detach a removed layer's mount");
        }
    }
}
