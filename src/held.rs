//! What containerd already holds, held by the node where it is: `[containerd]` put together with
//! [`lapwing_plugins::containerd`] and [`lapwing_p2p::node::Node::follow_foreign`].

use std::path::Path;
use std::sync::Arc;

use lapwing_p2p::node::Node;
use lapwing_plugins::containerd::content::ContentStore;
use lapwing_plugins::containerd::{Containerd, ContainerdError};

use crate::config;

/// Follows containerd as long as the node runs, whether it is there yet or not.
pub(crate) fn start(settings: &config::Containerd, node: &Arc<Node>) -> Result<(), ContainerdError> {
    if settings.enabled {
        let containerd = Containerd::at(&settings.socket)?;
        let content = ContentStore::new(containerd, settings.content().map(Path::to_owned));
        node.follow_foreign(Arc::new(content), settings.following());
    }
    Ok(())
}
