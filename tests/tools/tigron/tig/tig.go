// Package tig stands in for the interface that nerdctl's compiled-in test support names.
// nerdctl links it and never calls it.
package tig

// T is what that code needs of a test: the methods of testing.T that it calls.
type T interface {
	Helper()
	FailNow()
	Fail()
	Log(args ...interface{})
	Name() string
	TempDir() string
}
