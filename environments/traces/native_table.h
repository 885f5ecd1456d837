// What the lines of a code object can change: `native_table` of box_lines.py, read once a code object and kept there.
#pragma once

#include "native_form.h"

namespace {

constexpr int CHANGES = 2;

struct Line {
    int number;
    int effect;
    Py_ssize_t first, count;  // of Table::stores
};

struct Table {
    PyObject_HEAD
    PyObject* names;  // tuple
    bool is_function;
    Py_ssize_t n_names, n_cells, n_lines;
    Py_ssize_t* cells;   // indices of names
    Py_ssize_t* stores;  // the same
    Line* lines;         // by number; the first stands for those that are not there
};

PyTypeObject table_type = {PyVarObject_HEAD_INIT(nullptr, 0)};
Py_ssize_t table_index;  // where code objects keep their tables

void free_table(PyObject* self) {
    auto* table = reinterpret_cast<Table*>(self);
    Py_XDECREF(table->names);
    PyMem_Free(table->cells);
    PyMem_Free(table->stores);
    PyMem_Free(table->lines);
    PyObject_Free(self);
}

// Called with nothing too, when others keep something at a code object.
void drop_table(void* table) { Py_XDECREF(static_cast<PyObject*>(table)); }

// Copies a tuple of indices; false with an error.
bool copy_indices(PyObject* from, Py_ssize_t limit, Py_ssize_t* to) {
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(from); k++) {
        to[k] = PyLong_AsSsize_t(PyTuple_GET_ITEM(from, k));
        if (to[k] < 0 || to[k] >= limit) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "no such local");
            return false;
        }
    }
    return true;
}

bool copy_lines(Table* table, PyObject* lines) {
    Py_ssize_t total = 0;
    table->n_lines = PyTuple_GET_SIZE(lines);
    table->lines = PyMem_New(Line, table->n_lines + 1);
    if (table->lines == nullptr) return PyErr_NoMemory(), false;
    for (Py_ssize_t k = 0; k < table->n_lines; k++) {
        Line& line = table->lines[k];
        PyObject* stores;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(lines, k), "iiO!", &line.number, &line.effect, &PyTuple_Type, &stores)) return false;
        line.first = total;
        total += line.count = PyTuple_GET_SIZE(stores);
    }
    table->stores = PyMem_New(Py_ssize_t, total + 1);
    if (table->stores == nullptr) return PyErr_NoMemory(), false;
    for (Py_ssize_t k = 0; k < table->n_lines; k++) {
        PyObject* stores = PyTuple_GET_ITEM(PyTuple_GET_ITEM(lines, k), 2);
        if (!copy_indices(stores, table->n_names, table->stores + table->lines[k].first)) return false;
    }
    return true;
}

// None with an error.
Ref make_table(PyObject* described) {
    auto* table = PyObject_New(Table, &table_type);
    if (table == nullptr) return Ref();
    Ref made(reinterpret_cast<PyObject*>(table));
    table->names = nullptr;
    table->cells = table->stores = nullptr;
    table->lines = nullptr;
    int is_function;
    PyObject *names, *cells, *lines;
    if (!PyArg_ParseTuple(described, "pO!O!O!", &is_function, &PyTuple_Type, &names, &PyTuple_Type, &cells, &PyTuple_Type, &lines)) {
        return Ref();
    }
    table->names = Py_NewRef(names);
    table->is_function = is_function != 0;
    table->n_names = PyTuple_GET_SIZE(names);
    table->n_cells = PyTuple_GET_SIZE(cells);
    table->cells = PyMem_New(Py_ssize_t, table->n_cells + 1);
    if (table->cells == nullptr) return PyErr_NoMemory(), Ref();
    if (!copy_indices(cells, table->n_names, table->cells) || !copy_lines(table, lines)) return Ref();
    if (table->n_lines == 0) return PyErr_SetString(PyExc_ValueError, "a table without lines"), Ref();
    return made;
}

// The table of a code object; none with an error. `describe` is `native_table`.
Ref find_table(PyObject* code, PyObject* describe) {
    void* kept = nullptr;
    if (_PyCode_GetExtra(code, table_index, &kept) != 0) return Ref();
    if (kept != nullptr) return Ref::to(static_cast<PyObject*>(kept));
    Ref described(PyObject_CallOneArg(describe, code));
    if (!described) return Ref();
    if (!PyTuple_CheckExact(described.get())) return PyErr_SetString(PyExc_TypeError, "no table"), Ref();
    Ref table = make_table(described.get());
    if (table && _PyCode_SetExtra(code, table_index, Py_NewRef(table.get())) != 0) {
        Py_DECREF(table.get());
        return Ref();
    }
    return table;
}

const Line* find_line(const Table* table, int number) {
    Py_ssize_t low = 1, high = table->n_lines;
    while (low < high) {
        const Py_ssize_t middle = (low + high) / 2;
        if (table->lines[middle].number < number) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < table->n_lines && table->lines[low].number == number ? &table->lines[low] : &table->lines[0];
}

// The index of a name, most often `likely`; -1 for a name that is no local.
Py_ssize_t find_name(const Table* table, PyObject* name, Py_ssize_t likely) {
    if (likely < table->n_names && PyTuple_GET_ITEM(table->names, likely) == name) return likely;
    if (!PyUnicode_CheckExact(name)) return -1;
    for (Py_ssize_t k = 0; k < table->n_names; k++) {
        if (PyUnicode_Compare(PyTuple_GET_ITEM(table->names, k), name) == 0) return k;
    }
    return -1;
}

}  // namespace
