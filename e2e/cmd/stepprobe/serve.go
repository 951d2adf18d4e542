package main

import (
	"io"
	"net"
	"net/http"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// serve answers queries for any name with an address, at port 53 (UDP), requests at
// port 80, messages at port 9999 (UDP), and connections to the abstract socket
// "stepprobe", until it is killed. With the address "none" it is no name server.
func serve(text string) error {
	abstract, err := net.Listen("unix", "@stepprobe")
	if err != nil {
		return err
	}
	defer abstract.Close()
	failed := make(chan error)
	if text != "none" {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		go func() {
			failed <- packets(":53", func(query []byte) []byte { return reply(query, addr) })
		}()
	}
	go func() { failed <- packets(":9999", func(message []byte) []byte { return message }) }()
	go func() {
		failed <- http.ListenAndServe(":80", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "outside")
		}))
	}()
	return <-failed
}

func packets(address string, answer func([]byte) []byte) error {
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	buffer := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if message := answer(buffer[:n]); message != nil {
			_, _ = conn.WriteTo(message, from)
		}
	}
}

// reply returns the answer to a query, nil to what is none.
func reply(query []byte, addr netip.Addr) []byte {
	var message dnsmessage.Message
	if err := message.Unpack(query); err != nil || len(message.Questions) == 0 {
		return nil
	}
	message.Response, message.RecursionAvailable, message.Additionals = true, true, nil
	if question := message.Questions[0]; question.Type == dnsmessage.TypeA {
		message.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 1},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}}
	}
	packed, err := message.Pack()
	if err != nil {
		return nil
	}
	return packed
}
