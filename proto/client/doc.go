// Package client is for services that build images with Kiln: it uploads
// contexts, starts builds, follows them over broken connections, and fetches
// what they made.
//
// A build belongs to the builder, not to the connection. [Client.Start] names it
// by a request id, so that calling again after an error starts no second one.
// [Client.Watch] comes back at the event after the last one it gave. What the
// package does not wrap is there as [Client.API].
//
// Errors of calls are gRPC statuses; [Reason], [Remedy] and [RetryAfter] read
// what Kiln put into them. A build that did not succeed is a [*BuildError].
package client
