//! What containerd already holds, held by the node where it is: `[containerd]` put together with
//! [`lapwing_plugins::containerd`] and [`lapwing_p2p::node::Node::follow_foreign`].

use std::path::Path;
use std::sync::Arc;

use lapwing_p2p::node::Node;
use lapwing_plugins::containerd::Containerd;
use lapwing_plugins::containerd::content::ContentStore;

use crate::config;

/// Follows containerd as long as the node runs, whether it is there yet or not.
pub(crate) fn start(settings: &config::Containerd, containerd: &Containerd, node: &Arc<Node>) {
    if settings.enabled {
        let content = ContentStore::new(containerd.clone(), settings.content().map(Path::to_owned));
        node.follow_foreign(Arc::new(content), settings.following());
    }
}
