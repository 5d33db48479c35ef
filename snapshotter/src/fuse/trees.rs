//! What the kernel asks of something in a tree, and how it is answered. Nothing here waits for a network.

use rustix::io::Errno;

use super::wire::{self, Dirent, Request};
use super::{Terms, Trees};
use crate::limits::MAX_READ_BYTES;

/// The flags of OPEN that say how a file is to be accessed.
const ACCESS_MODE: u32 = 3;

/// Answers everything but READ.
pub(super) fn answer(trees: &dyn Trees, terms: Terms, opcode: u32, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
    let id = request.nodeid;
    match opcode {
        wire::LOOKUP => {
            let name = request.name().ok_or(Errno::INVAL)?;
            Ok(wire::node_out(trees.lookup(id, name)?.as_ref()))
        }
        wire::GETATTR => Ok(wire::node_attr_out(&trees.node(id)?)),
        wire::READLINK => trees.target(id),
        // Never asked again then: the kernel opens files itself, as if answered so.
        wire::OPEN if terms.spares_open() => Err(Errno::NOSYS),
        wire::OPEN if request.open_flags().is_none_or(|flags| flags & ACCESS_MODE != 0) => Err(Errno::ROFS),
        wire::OPEN => Ok(wire::tree_open_out().to_vec()),
        wire::OPENDIR if terms.spares_opendir() => Err(Errno::NOSYS),
        wire::OPENDIR => Ok(wire::tree_opendir_out().to_vec()),
        wire::READDIR => list(trees, request, false),
        wire::READDIRPLUS => list(trees, request, true),
        wire::GETXATTR | wire::LISTXATTR => attribute(trees, opcode, request),
        wire::STATFS => Ok(wire::statfs_out().to_vec()),
        wire::RELEASE | wire::RELEASEDIR => Ok(Vec::new()),
        // FLUSH among them: the kernel does without, for good.
        _ => Err(Errno::NOSYS),
    }
}

fn list(trees: &dyn Trees, request: &Request<'_>, plus: bool) -> Result<Vec<u8>, Errno> {
    let (from, size) = request.extent().ok_or(Errno::INVAL)?;
    let limit = size.min(MAX_READ_BYTES) as usize;
    let (mut out, mut failed) = (Vec::new(), None);
    trees.list(request.nodeid, from, &mut |found| {
        let entry = Dirent { name: found.name, ino: found.id, next: found.next, kind: found.kind };
        if !plus {
            return entry.push(&mut out, limit);
        }
        if matches!(found.name, b"." | b"..") {
            return entry.push_plus(&mut out, limit, None);
        }
        match trees.node(found.id) {
            Ok(node) => entry.push_plus(&mut out, limit, Some(&node)),
            Err(errno) => {
                failed = Some(errno);
                false
            }
        }
    })?;
    failed.map_or(Ok(out), Err)
}

fn attribute(trees: &dyn Trees, opcode: u32, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
    let (limit, wanted) = request.attribute().ok_or(Errno::INVAL)?;
    let attributes = trees.attributes(request.nodeid)?;
    let value = if opcode == wire::LISTXATTR {
        attributes.into_iter().flat_map(|(name, _)| [name, vec![0]].concat()).collect()
    } else {
        let found = attributes.into_iter().find(|(name, _)| name == wanted);
        found.ok_or(Errno::NODATA)?.1
    };
    wire::attribute_out(limit, value).ok_or(Errno::RANGE)
}
