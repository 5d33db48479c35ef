// Parses alert rules and the queries of Grafana boards by Prometheus' own code, and prints each metric that they name, one a line.
//
//	rulecheck RULES.yaml... BOARD.json...
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sort"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

var metrics = map[string]bool{}

var promql = parser.NewParser(parser.Options{})

func query(text string) error {
	expression, err := promql.ParseExpr(text)
	if err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, is := node.(*parser.VectorSelector); is {
			metrics[selector.Name] = true
		}
		return nil
	})
	return nil
}

func rules(path string) error {
	groups, failures := rulefmt.ParseFile(path, false, model.UTF8Validation, promql, slog.Default())
	if len(failures) > 0 {
		return errors.Join(failures...)
	}
	var err error
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			err = errors.Join(err, query(rule.Expr))
		}
	}
	return err
}

// Every "expr" in the board, wherever its panels are nested. Grafana's variables are given values first.
func board(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return walk(tree)
}

func walk(tree any) error {
	var err error
	switch tree := tree.(type) {
	case map[string]any:
		for key, value := range tree {
			if text, is := value.(string); is && key == "expr" {
				err = errors.Join(err, query(strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h").Replace(text)))
			} else {
				err = errors.Join(err, walk(value))
			}
		}
	case []any:
		for _, value := range tree {
			err = errors.Join(err, walk(value))
		}
	}
	return err
}

func main() {
	var err error
	for _, path := range os.Args[1:] {
		if strings.HasSuffix(path, ".json") {
			err = errors.Join(err, board(path))
		} else {
			err = errors.Join(err, rules(path))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	names := make([]string, 0, len(metrics))
	for name := range metrics {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Println(strings.Join(names, "\n"))
}
