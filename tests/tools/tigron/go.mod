// nerdctl requires this test library at v0.0.0, which only the replace line in nerdctl's own go.mod provides.
// The nerdctl command links one interface of it, see tig/tig.go.
module github.com/containerd/nerdctl/mod/tigron

go 1.26
