"""Writes a tar in the format named by the first argument, and says on stderr what is in it."""
import hashlib
import io
import sys
import tarfile

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
KINDS = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


def entry(name, kind=tarfile.REGTYPE, link="", data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def entries(form):
    yield entry("./", tarfile.DIRTYPE, mode=0o755)
    yield entry("./etc", tarfile.DIRTYPE, mode=0o1777, uid=1000, gid=100, mtime=1700000000)
    yield entry("etc/passwd", data=b"root:x:0:0\n", mode=0o4755, mtime=0)
    yield entry("/etc//./group", data=b"x" * 512)
    yield entry("etc/odd \n\t\\ '\"*", data=b"odd")
    yield entry("etc/name-of-\u00e9\u00fc\u4e2d", data=b"utf-8")
    yield entry("etc/raw-\udcff\udcfe", data=b"not utf-8")
    yield entry("etc/link", tarfile.SYMTYPE, "../usr/lib")
    yield entry("etc/abs", tarfile.SYMTYPE, "/etc/passwd")
    yield entry("etc/hard", tarfile.LNKTYPE, "./etc/passwd")
    yield entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    yield entry("dev/sda", tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o660, gid=6)
    yield entry("dev/pipe", tarfile.FIFOTYPE)
    yield entry("etc/.wh.gone", data=b"")
    yield entry("etc/.wh..wh..opq", data=b"")
    yield entry("etc/passwd", data=b"again", uid=7)
    yield entry("n" * 100, data=b"exactly 100")
    yield entry("p" * 100 + "/" + "n" * 99, data=b"needs a prefix")
    yield entry("etc/contiguous", tarfile.CONTTYPE, data=b"type 7")
    yield entry("etc/v7", tarfile.AREGTYPE, data=b"type NUL")
    yield entry("etc/v7-directory/", tarfile.AREGTYPE)
    if form != "ustar":
        yield entry("d" * 200 + "/" + "n" * 255, data=b"long name")
        yield entry("etc/longlink", tarfile.SYMTYPE, "t" * 3000)
        yield entry("etc/longhard", tarfile.LNKTYPE, "d" * 200 + "/" + "n" * 255)
        yield entry("etc/rich", data=b"large ids", uid=3000000000, gid=4000000000, mtime=8589934592 + 5)
    if form == "pax":
        yield entry("etc/time", data=b"t", mtime=1700000000.25)
        records = {"SCHILY.xattr.user.a": "value", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "comment": "c",
                   "LIBARCHIVE.xattr.user.b": "aWdub3JlZA"}
        yield entry("etc/xattrs", data=b"xx", pax_headers=records)
        yield entry("etc/xattrs-directory", tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.user.empty": ""})
    yield entry("last", data=bytes(range(256)) * 33)


def main():
    form = sys.argv[1]
    archive = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=FORMATS[form], errors="surrogateescape")
    truth = []
    for member, data in entries(form):
        is_directory = member.isdir() or member.name.endswith("/")
        kind = "directory" if is_directory else KINDS[member.type]
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        link = member.linkname
        if kind == "hardlink":
            link = "/".join(part for part in link.split("/") if part not in ("", "."))
        xattrs = [(key[13:], value) for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")]
        truth.append("|".join([
            name.encode(errors="surrogateescape").hex(), kind, "%o" % member.mode, str(member.uid), str(member.gid),
            "%.2f" % member.mtime, link.encode().hex(),
            "%d,%d" % (member.devmajor, member.devminor) if kind in ("char", "block") else "",
            hashlib.sha256(data).hexdigest() if kind == "file" else "",
            ",".join(key + "=" + value.encode().hex() for key, value in xattrs),
        ]))
        archive.addfile(member, io.BytesIO(data))
    archive.close()
    sys.stderr.write("\n".join(truth))


main()
